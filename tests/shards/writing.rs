//! Shards appear whole or not at all, and say so when they are no longer what was written.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use lensmith::Error;
use lensmith::data::{
    AtomicFile, Header, Io, PairOptions, PairSet, ShardRecord, ShardWriter, inspect_shard, verify_shard,
    write_atomic, write_tensors,
};
use lensmith::dtype::Dtype;
use lensmith::matrix::{RowSet, RowsBuf, Side};
use safetensors::{Dtype as FileDtype, SafeTensors};
use xxhash_rust::xxh3::xxh3_128;

use crate::support::*;

#[test]
fn the_safetensors_crate_reads_our_shards() {
    let dir = folder();
    for dtype in Dtype::ALL {
        let path = dir.path().join(format!("{dtype}.safetensors"));
        let (record, sides) = write_pairs(&path, dtype, 7, 3);
        let bytes = fs::read(&path).unwrap();
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), 2);
        for (side, values) in Side::BOTH.into_iter().zip(&sides) {
            let view = theirs.tensor(side.name()).unwrap();
            assert_eq!((view.dtype(), view.shape()), (file_dtype(dtype), &[7, 3][..]));
            assert_eq!(view.data(), values.view().values().bytes());
            assert_eq!(record.tensors[side.name()], format!("{:032x}", xxh3_128(view.data())));
        }
        let (_, read) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(read.metadata().as_ref().unwrap()["recipe"], metadata()["recipe"]);
        assert_eq!(record.file, format!("{dtype}.safetensors"));
    }
}

#[test]
fn payloads_start_on_a_page() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    for text in [0, 1, 3500, 3900, 4100, 10_000] {
        let metadata = BTreeMap::from([("note".to_string(), "n".repeat(text))]);
        let specs = [spec("chosen", FileDtype::F32, &[2]), spec("rejected", FileDtype::F32, &[2])];
        let mut writer = ShardWriter::create(&path, &specs, 1, &metadata).unwrap();
        writer.append(0, &[1; 8]).unwrap();
        writer.append(1, &[2; 8]).unwrap();
        writer.finish().unwrap();
        let header = Header::parse(&path, &fs::read(&path).unwrap()).unwrap();
        assert_eq!((header.payload % 4096, header.tensors[0].range.start), (0, header.payload));
        assert_eq!(header.metadata["note"].len(), text);
        verify_shard(&path, Io::Read).unwrap();
    }
}

#[test]
fn equal_contents_give_equal_files() {
    let dir = folder();
    let [a, b] = ["a", "b"].map(|name| {
        let path = dir.path().join(name);
        write_pairs(&path, Dtype::F16, 5, 3);
        fs::read(path).unwrap()
    });
    assert_eq!(a, b);
}

#[test]
fn pieces_may_come_in_turns() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let sides = [values(12, 1), values(12, 2)].map(|v| f32_bytes(&v));
    let specs = [spec("chosen", FileDtype::F32, &[3]), spec("rejected", FileDtype::F32, &[3])];
    let mut writer = ShardWriter::create(&path, &specs, 4, &BTreeMap::new()).unwrap();
    // Pieces of 7 bytes: neither rows nor values are whole.
    for (late, early) in sides[1].chunks(7).zip(sides[0].chunks(7)) {
        writer.append(1, late).unwrap();
        writer.append(0, early).unwrap();
        assert!(!path.exists());
    }
    let record = writer.finish().unwrap();
    assert_eq!(record.rows, 4);
    for io in BOTH {
        let set = open(&path, io).unwrap();
        for side in Side::BOTH {
            assert_eq!(
                set.rows(side, 0..4).unwrap().view().parts()[0].values().bytes(),
                sides[side as usize]
            );
        }
        assert_eq!(verify_shard(&path, io).unwrap(), record);
    }
    let (header, inspected) = inspect_shard(&path).unwrap();
    assert_eq!(inspected, Some(record.clone()));
    assert_eq!(header.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["chosen", "rejected"]);
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<ShardRecord>(&json).unwrap(), record);
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    fs::write(&path, b"the shard before").unwrap();
    let specs = [spec("chosen", FileDtype::F32, &[2])];
    let mut writer = ShardWriter::create(&path, &specs, 2, &BTreeMap::new()).unwrap();
    writer.append(0, &[0; 8]).unwrap();
    assert!(dir.path().join(".a.safetensors.tmp").exists());
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let mut writer = ShardWriter::create(&path, &specs, 2, &BTreeMap::new()).unwrap();
    writer.append(0, &[0; 15]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(&error, Error::Shape { expected, found, .. } if expected == "16" && found == "15"));
    check_message(&error, "a.safetensors: bytes of tensor `chosen`");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&path).unwrap(), b"the shard before");
}

#[test]
fn a_leftover_of_a_crash_is_replaced() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    fs::write(dir.path().join(".a.safetensors.tmp"), vec![7; 100_000]).unwrap();
    let (record, _) = write_pairs(&path, Dtype::F32, 2, 2);
    assert_eq!(verify_shard(&path, Io::Mmap).unwrap(), record);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn wrong_appends_are_refused() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let specs = [spec("chosen", FileDtype::F32, &[2])];
    let mut writer = ShardWriter::create(&path, &specs, 1, &BTreeMap::new()).unwrap();
    writer.append(0, &[0; 6]).unwrap();
    let error = writer.append(0, &[0; 3]).unwrap_err();
    assert!(matches!(&error, Error::Shape { expected, found, .. } if expected == "8" && found == "9"));
    check_message(&error, "a.safetensors");
    assert!(matches!(writer.append(1, &[]), Err(Error::Shape { .. })));
    writer.append(0, &[0; 2]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn what_cannot_be_written_is_refused_at_once() {
    let dir = folder();
    let create = |name: &str, specs: &[_], rows| {
        ShardWriter::create(&dir.path().join(name), specs, rows, &BTreeMap::new()).err().unwrap()
    };
    let a = || spec("a", FileDtype::F32, &[2]);
    let error = create("gone/a.safetensors", &[a()], 1);
    assert!(matches!(error, Error::Io { action: "create", .. }), "{error:?}");
    check_message(&error, "gone/a.safetensors");
    assert!(matches!(create("..", &[a()], 1), Error::Io { .. }));
    assert!(matches!(create("a", &[a(), a()], 1), Error::Format { .. }));
    assert!(matches!(create("a", &[spec("__metadata__", FileDtype::F32, &[])], 1), Error::Format { .. }));
    assert!(matches!(create("a", &[a()], usize::MAX), Error::Format { .. }));
    assert!(matches!(create("a", &[a()], usize::MAX / 16), Error::Format { .. }));
    assert!(matches!(create("a", &[spec("a", FileDtype::F4, &[3])], 1), Error::Format { .. }));
    let long = spec(&"n".repeat(60_000_000), FileDtype::F32, &[2]);
    let error = create("a", &[long], 1);
    assert!(matches!(&error, Error::Format { detail, .. } if detail.contains("at most 8000000")), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    write_pairs(&path, Dtype::Bf16, 5, 3);
    let good = fs::read(&path).unwrap();
    let (header, record) = inspect_shard(&path).unwrap();
    assert!(record.is_some());
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        let error = verify_shard(&path, BOTH[at % 2]).expect_err("a flipped bit passed");
        check_message(&error, "a.safetensors");
        if at >= header.payload {
            let tensor = header.tensors.iter().find(|t| t.range.contains(&at)).unwrap();
            let Error::Mismatch { what, .. } = &error else { panic!("byte {at}: {error:?}") };
            assert_eq!(what, &format!("checksum of tensor `{}`", tensor.name));
            assert!(inspect_shard(&path).is_ok());
        }
    }
}

#[test]
fn files_without_checksums_have_no_record() {
    let dir = folder();
    let path = put(dir.path(), "a.safetensors", &pairs(2, 3, 1));
    let (header, record) = inspect_shard(&path).unwrap();
    assert_eq!((header.tensors.len(), record), (2, None));
    let error = verify_shard(&path, Io::Mmap).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    check_message(&error, "a.safetensors");
}

#[test]
fn whole_tensors_of_any_shape() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let weight: Vec<u8> = (0..24).collect();
    let tensors = [
        ("fc1.weight".to_string(), FileDtype::F32, vec![2, 3], &weight[..]),
        ("step".to_string(), FileDtype::I64, vec![], &weight[..8]),
        ("empty".to_string(), FileDtype::F16, vec![0, 5], &[][..]),
    ];
    let record = write_tensors(&path, &tensors, &metadata()).unwrap();
    assert_eq!((record.rows, record.tensors.len()), (2, 3));
    let bytes = fs::read(&path).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dtype, shape, data) in &tensors {
        let view = theirs.tensor(name).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (*dtype, &shape[..], *data));
    }
    assert_eq!(Header::parse(&path, &bytes).unwrap().payload % 4096, 0);
    assert_eq!(verify_shard(&path, Io::Read).unwrap(), record);

    let short = [("a".to_string(), FileDtype::F32, vec![2, 3], &weight[..23])];
    let error = write_tensors(&path, &short, &metadata()).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), bytes, "the file before is untouched");
}

#[test]
fn small_files_are_replaced_whole() {
    let dir = folder();
    let path = dir.path().join("run.json");
    write_atomic(&path, b"first, and longer").unwrap();
    write_atomic(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");

    let mut file = AtomicFile::create(&path).unwrap();
    file.file().write_all(b"third").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    drop(file);
    file = AtomicFile::create(&path).unwrap();
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn picked_pairs_are_written_in_their_dtype_or_the_widest() {
    let dir = folder();
    let half = RowsBuf::from_f32(Dtype::F16, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2).unwrap();
    let single = RowsBuf::from_f32(Dtype::F32, &[0.1, 0.2], 2).unwrap();
    let (half, single) = (RowSet::from(half.view()), RowSet::from(single.view()));
    let mixed = RowSet::new([half.pick(&[2]).parts(), single.parts()].concat()).unwrap();
    for (sides, dtype, first) in [
        ([&half.pick(&[2, 0]), &half.pick(&[1, 1])], Dtype::F16, [5.0f32, 6.0, 1.0, 2.0]),
        ([&mixed, &half.pick(&[0, 1])], Dtype::F32, [5.0, 6.0, 0.1, 0.2]),
    ] {
        let path = dir.path().join(format!("{dtype}.safetensors"));
        lensmith::data::write_pairs(&path, sides, None).unwrap();
        let set = PairSet::open(&[path.to_string_lossy().into_owned()], &PairOptions::default()).unwrap();
        assert_eq!((set.len(), set.files()[0].dtype), (2, dtype));
        let mut wide = [0f32; 4];
        set.rows(Side::Chosen, 0..2).unwrap().view().widen(0..2, &mut wide);
        assert_eq!(wide, first);
    }
}
