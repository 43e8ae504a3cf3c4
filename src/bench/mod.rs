//! Rates of every operation and of the whole method on one device, beside the limits of that device measured in the
//! same process.
//!
//! Inputs are random and larger than caches. A rate is the median of several trials. What an operation needs (bytes,
//! FLOP, normals) is that of its definition, so that its share of the limit is the share of useful work. An
//! implementation that does less than the definition, such as one that leaves out terms that are zero, can pass 1.

mod operations;
mod others;
mod report;
mod whole;
mod work;

use crate::backend::device::dispatch;
use crate::backend::{AnyBackend, Limit, Resident, Resource, Roofline};
use crate::error::Result;
use crate::timing::Timing;

pub use others::Ticks;
use report::Models;
pub use report::{Entry, Need, Operation, Options, Report, limit_of, rate};

/// Measures what `options` names; `on_status` is told what is under way.
///
/// # Errors
/// Sizes out of range, what the device fails with, and a folder that cannot be written.
pub fn measure(any: &AnyBackend, options: &Options, on_status: &mut dyn FnMut(&str)) -> Result<Report> {
    let models = options.models(options.dim)?;
    let start = Ticks::now();
    let asked = |operation| options.only.contains(&operation);
    let (mut limits, mut entries) = (Vec::new(), Vec::new());
    if options.limits {
        on_status("limits of the device");
        let (measured, resident) = limits_of_device(any, options, &models)?;
        limits = measured;
        entries.extend(resident.iter().map(kernel_entry).filter(|e| asked(e.operation)));
    }
    // Operations whose kernel alone was measured, on data that stays on the device.
    let resident: Vec<Operation> = entries.iter().map(|e| e.operation).collect();
    if options.limits || asked(Operation::Normals) {
        let normals = operations::normals(options)?;
        if options.limits {
            limits.push(Limit {
                what: "normals, all threads".into(),
                resource: Resource::Normals,
                per_second: normals.per_second * any.info().threads.max(1) as f64,
            });
        }
        entries.extend(asked(Operation::Normals).then_some(normals));
    }
    if options.limits && asked(Operation::Disk) {
        on_status("limits of the disk");
        limits.push(whole::disk_limit(options)?);
    }
    let calls = entries.len();
    dispatch!(any, b => {
        operations::measure(b, options, &models, on_status, &mut entries)?;
        whole::measure(b, options, &models, on_status, &mut entries)?;
    });
    if options.limits && !entries.is_empty() {
        // Once more, and the higher counts: clocks, and whoever else uses the machine, change over the minutes.
        on_status("limits of the device");
        let (again, _) = limits_of_device(any, options, &models)?;
        for (limit, again) in limits.iter_mut().zip(again) {
            limit.per_second = limit.per_second.max(again.per_second);
        }
    }
    // A call that copies its result to the host is bound by the copy, for which there is no limit here.
    for entry in entries[calls..].iter_mut().filter(|e| resident.contains(&e.operation)) {
        entry.what.push_str(", to the host");
        entry.needs.clear();
    }
    Ok(Report {
        lensmith: env!("CARGO_PKG_VERSION").into(),
        kernels: format!("{:016x}", crate::backend::KERNELS),
        device: any.info(),
        options: options.clone(),
        entries: entries.into_iter().map(|e| e.with_share(&limits)).collect(),
        limits,
        others: start.and_then(|start| Ticks::now()?.others_since(start)),
    })
}

fn limits_of_device(
    any: &AnyBackend,
    options: &Options,
    models: &Models,
) -> Result<(Vec<Limit>, Vec<Resident>)> {
    dispatch!(any, b => Roofline::measure(b, &models.vae, &models.reward, options.rows))
}

/// A kernel that ran on data resident on the device, under the operation that it does.
fn kernel_entry(resident: &Resident) -> Entry {
    let operation = match resident.what.as_str() {
        what if what.contains("decode") => Operation::Decode,
        what if what.contains("folded") => Operation::Folded,
        what if what.contains("score") => Operation::Score,
        what if what.contains("select") => Operation::Select,
        _ => Operation::Encode,
    };
    let timing = Timing::of(vec![1.0 / resident.per_second]);
    let needs = [(Resource::Flop, resident.flop), (resident.resource, resident.bytes)];
    Entry::new(operation, format!("{}, on the device", resident.what), "rows", timing, &needs)
}
