//! Arrow arrays as rows of values: lists of one length, nested or not, down to numbers.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, OffsetSizeTrait, PrimitiveArray};
use arrow_schema::DataType;

use super::column::{Buffer, Kind};
use crate::error::{Error, Result};

thread_local! {
    /// Whether this thread runs a decoder whose panics are errors.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder of another crate on a file that may hold anything. A panic becomes an error with its message, and is
/// not printed: the hook that prints panics is asked for all others.
pub(super) fn guarded<T>(decode: impl FnOnce() -> T) -> std::result::Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !DECODING.get() {
                before(panic);
            }
        }));
    });
    DECODING.set(true);
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode));
    DECODING.set(false);
    decoded.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its decoder gave up");
        one_line(text)
    })
}

/// What a decoder says, on one line.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Most bytes that `packed` bytes may unpack to: a thousandfold, and 64 MiB for what is small. Compressed numbers save a
/// half; what saves more than this is made to fill the memory.
pub(super) fn most_unpacked(packed: u64) -> u64 {
    packed.saturating_mul(1024).saturating_add(64 << 20)
}

/// Where an array comes from, for messages.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    /// Row of the file that is the array's first.
    pub row: u64,
}

impl Place<'_> {
    fn what(&self, row: u64) -> String {
        format!("{}: column `{}`, row {}", self.path.display(), self.name, self.row + row)
    }

    fn null(&self, row: u64) -> Error {
        Error::shape(self.what(row), "a value", "null")
    }
}

/// Kind and depth of lists of a column; fails on what is not numbers or lists of numbers.
pub(super) fn kind(place: Place<'_>, data_type: &DataType) -> Result<(Kind, usize)> {
    let found = match data_type {
        DataType::FixedSizeList(field, _) | DataType::List(field) | DataType::LargeList(field) => {
            return kind(place, field.data_type()).map(|(kind, depth)| (kind, depth + 1));
        }
        DataType::Float16 => Kind::F16,
        DataType::Float32 => Kind::F32,
        DataType::Float64 => Kind::F64,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Kind::I64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => Kind::I64,
        other => {
            return Err(Error::WrongDtype {
                path: place.path.to_path_buf(),
                tensor: place.name.to_string(),
                expected: "floats of 16, 32 or 64 bits, integers, or lists of them",
                found: other.to_string(),
            });
        }
    };
    Ok((found, 0))
}

/// The shape of a row if the type alone tells it, as of lists of fixed size.
pub(super) fn fixed_shape(data_type: &DataType) -> Option<Vec<usize>> {
    match data_type {
        DataType::FixedSizeList(field, size) => {
            let mut shape = vec![usize::try_from(*size).ok()?];
            shape.extend(fixed_shape(field.data_type())?);
            Some(shape)
        }
        DataType::List(_) | DataType::LargeList(_) => None,
        _ => Some(Vec::new()),
    }
}

/// The shape of the first row, which all others must have. The array has a row.
pub(super) fn first_shape(place: Place<'_>, array: &dyn Array) -> Result<Vec<usize>> {
    if array.is_null(0) {
        return Err(place.null(0));
    }
    let item = match array.data_type() {
        DataType::FixedSizeList(..) => array.as_fixed_size_list().value(0),
        DataType::List(_) => array.as_list::<i32>().value(0),
        DataType::LargeList(_) => array.as_list::<i64>().value(0),
        _ => return Ok(Vec::new()),
    };
    let mut shape = vec![item.len()];
    if item.is_empty() {
        let what = format!("{}: values of the list", place.what(0));
        return Err(Error::TooFew { what, needed: 1, found: 0 });
    }
    shape.extend(first_shape(place, item.as_ref())?);
    Ok(shape)
}

/// Appends the values of `rows` of the array, each of shape `tail`, to `out`. Fails on nulls and on lists of another
/// length, with the row.
pub(super) fn extract(
    place: Place<'_>,
    array: &dyn Array,
    rows: Range<usize>,
    tail: &[usize],
    out: &mut Buffer,
) -> Result<()> {
    level(place, array, rows, 1, tail, out)
}

/// As [`extract`], for an array that has `per_row` items for each row of the column; `items` are whole rows.
fn level(
    place: Place<'_>,
    array: &dyn Array,
    items: Range<usize>,
    per_row: usize,
    tail: &[usize],
    out: &mut Buffer,
) -> Result<()> {
    // `place.row` is the row of the first of `items`.
    if let Some(nulls) = array.nulls().filter(|n| n.null_count() > 0)
        && let Some(at) = items.clone().find(|&i| nulls.is_null(i))
    {
        return Err(place.null(((at - items.start) / per_row) as u64));
    }
    let Some((&length, below)) = tail.split_first() else {
        return numbers(place, array, items, per_row, out);
    };
    match array.data_type() {
        DataType::FixedSizeList(_, size) => {
            if usize::try_from(*size) != Ok(length) {
                let what = format!("{}: values of column `{}`", place.path.display(), place.name);
                return Err(Error::shape(what, length, size));
            }
            let lists = array.as_fixed_size_list();
            let values = items.start * length..items.end * length;
            level(place, lists.values().as_ref(), values, per_row * length, below, out)
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let values = same_length(place, lists.value_offsets(), items, per_row, length)?;
            level(place, lists.values().as_ref(), values, per_row * length, below, out)
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            let values = same_length(place, lists.value_offsets(), items, per_row, length)?;
            level(place, lists.values().as_ref(), values, per_row * length, below, out)
        }
        other => {
            let what = format!("{}: column `{}`", place.path.display(), place.name);
            Err(Error::shape(what, "lists as in the rows before", other))
        }
    }
}

/// The range of values that the lists `items` cover. Fails unless each list has `length` values.
fn same_length<O: OffsetSizeTrait>(
    place: Place<'_>,
    offsets: &[O],
    items: Range<usize>,
    per_row: usize,
    length: usize,
) -> Result<Range<usize>> {
    for (i, ends) in offsets[items.start..=items.end].windows(2).enumerate() {
        let found = (ends[1] - ends[0]).as_usize();
        if found != length {
            let what = format!("{}: values in the list", place.what((i / per_row) as u64));
            return Err(Error::shape(what, length, found));
        }
    }
    Ok(offsets[items.start].as_usize()..offsets[items.end].as_usize())
}

fn numbers(
    place: Place<'_>,
    array: &dyn Array,
    items: Range<usize>,
    per_row: usize,
    out: &mut Buffer,
) -> Result<()> {
    fn values<T: ArrowPrimitiveType>(array: &dyn Array, items: Range<usize>) -> &[T::Native] {
        let array: &PrimitiveArray<T> = array.as_primitive();
        &array.values()[items]
    }
    fn integers<T: ArrowPrimitiveType>(array: &dyn Array, items: Range<usize>, out: &mut Vec<i64>)
    where
        i64: From<T::Native>,
    {
        out.extend(values::<T>(array, items).iter().map(|&x| i64::from(x)));
    }
    let found = array.data_type();
    match (found, out) {
        (DataType::Float16, Buffer::F16(o)) => o.extend_from_slice(values::<Float16Type>(array, items)),
        (DataType::Float32, Buffer::F32(o)) => o.extend_from_slice(values::<Float32Type>(array, items)),
        (DataType::Float64, Buffer::F64(o)) => o.extend_from_slice(values::<Float64Type>(array, items)),
        (DataType::Int64, Buffer::I64(o)) => o.extend_from_slice(values::<Int64Type>(array, items)),
        (DataType::Int8, Buffer::I64(o)) => integers::<Int8Type>(array, items, o),
        (DataType::Int16, Buffer::I64(o)) => integers::<Int16Type>(array, items, o),
        (DataType::Int32, Buffer::I64(o)) => integers::<Int32Type>(array, items, o),
        (DataType::UInt8, Buffer::I64(o)) => integers::<UInt8Type>(array, items, o),
        (DataType::UInt16, Buffer::I64(o)) => integers::<UInt16Type>(array, items, o),
        (DataType::UInt32, Buffer::I64(o)) => integers::<UInt32Type>(array, items, o),
        (DataType::UInt64, Buffer::I64(o)) => {
            for (i, &value) in values::<UInt64Type>(array, items).iter().enumerate() {
                o.push(i64::try_from(value).map_err(|_| {
                    Error::shape(place.what((i / per_row) as u64), "an integer that fits I64", value)
                })?);
            }
        }
        (_, out) => {
            let what = format!("{}: type of column `{}`", place.path.display(), place.name);
            return Err(Error::shape(what, format!("{} values", out.kind().name()), found));
        }
    }
    Ok(())
}
