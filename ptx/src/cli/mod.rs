//! The command: options, the launch, and what is printed of it.

mod values;

use std::fmt::Write;
use std::fs;

use ptx::{Copies, Launch, Memory, Module, Options, Order, launch};
use values::Argument;

const HELP: &str = "\
Runs a kernel of a PTX file on the CPU and reports faults, outputs and counters.

  ptx FILE --kernel NAME [options] --arg VALUE ...
  ptx opcodes FILE ...       lists the opcodes of the files, and fails on one that is not known
  ptx kernels FILE ...       lists kernels with their parameters

Options:
  --grid X[,Y,Z]             blocks (1)
  --block X[,Y,Z]            threads of a block (32)
  --cluster X[,Y,Z]          blocks of a cluster (1)
  --cooperative              all blocks are on the device at once
  --shared BYTES             dynamic shared memory (0); more than 48 KiB counts as opted into
  --arg VALUE                the next argument:
                               u32:5  s64:-1  f32:0.5  bf16:2    a number of this type
                               null                              a null pointer
                               bytes:00ff12                      a structure
                               f32[1024]:random                  a buffer: random, iota, zeros,
                                                                 unwritten, or a number for all
                               bf16[256,64]:random:box=64,8:swizzle=128
                                                                 a tensor map of a buffer: sizes and
                                                                 box, the contiguous one first;
                                                                 swizzle=32, 64, 128; fill=nan
  --warps, --blocks ORDER    forward, backward, random:SEED
  --copies late|early        when cp.async writes
  --seed N                   of random buffers and approximate instructions (0)
  --steps N                  instructions of a warp at most
  --no-races                 does not look for races
  --lines N                  prints the N source lines with most instructions
  --print N                  prints the first N values of each buffer (4)

Examples:
  ptx vector.ptx --kernel add --grid 4 --block 128 --arg f32[512]:random --arg f32[512]:iota \\
      --arg f32[512]:unwritten --arg u32:512
  ptx opcodes vector.ptx
";

fn triple(text: &str) -> Result<[u32; 3], String> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err(format!("{text}: more than three sizes"));
    }
    for (o, p) in out.iter_mut().zip(parts) {
        *o = p.parse().map_err(|_| format!("{text}: {p} is no size"))?;
    }
    Ok(out)
}

fn order(text: &str) -> Result<Order, String> {
    match text.split_once(':') {
        None if text == "forward" => Ok(Order::Forward),
        None if text == "backward" => Ok(Order::Backward),
        Some(("random", seed)) => seed.parse().map(Order::Random).map_err(|_| format!("{seed} is no seed")),
        _ => Err(format!("{text}: expected forward, backward or random:SEED")),
    }
}

fn module(path: &str) -> Result<Module, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    Module::parse(&text).map_err(|e| format!("{path}: {e}"))
}

/// Runs the command; what it prints, or why it failed.
pub fn run(arguments: &[String]) -> Result<String, String> {
    let mut out = String::new();
    match arguments.first().map(String::as_str) {
        None | Some("--help" | "-h" | "help") => return Ok(HELP.to_string()),
        Some("opcodes") => {
            let mut all = std::collections::BTreeMap::new();
            for path in &arguments[1..] {
                for (opcode, count) in module(path)?.opcodes {
                    *all.entry(opcode).or_insert(0u64) += count;
                }
            }
            for (opcode, count) in all {
                let _ = writeln!(out, "{count:8} {opcode}");
            }
            return Ok(out);
        }
        Some("kernels") => {
            for path in &arguments[1..] {
                for k in module(path)?.kernels {
                    let params: Vec<String> =
                        k.params.iter().map(|p| format!("{}@{}", p.bytes, p.offset)).collect();
                    let _ = writeln!(
                        out,
                        "{}: {} instructions, {} bytes of static shared memory, parameters (bytes@offset) {}",
                        k.name,
                        k.instructions(),
                        k.static_shared,
                        params.join(" ")
                    );
                }
            }
            return Ok(out);
        }
        Some(_) => {}
    }
    launch_file(arguments)
}

fn launch_file(arguments: &[String]) -> Result<String, String> {
    let mut path = None;
    let (mut kernel, mut grid, mut block, mut cluster) = (None, [1; 3], [32, 1, 1], [1; 3]);
    let mut cooperative = false;
    let (mut shared, mut lines, mut print, mut seed) = (0u32, 0usize, 4usize, 0u64);
    let mut options = Options::default();
    let mut texts = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{argument} needs a value"));
        let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            "--kernel" => kernel = Some(value()?.clone()),
            "--grid" => grid = triple(value()?)?,
            "--block" => block = triple(value()?)?,
            "--cluster" => cluster = triple(value()?)?,
            "--cooperative" => cooperative = true,
            "--shared" => shared = number(value()?)? as u32,
            "--arg" => texts.push(value()?.clone()),
            "--warps" => options.warps = order(value()?)?,
            "--blocks" => options.blocks = order(value()?)?,
            "--copies" => {
                options.copies = match value()?.as_str() {
                    "late" => Copies::Late,
                    "early" => Copies::Early,
                    other => return Err(format!("{other}: expected late or early")),
                }
            }
            "--seed" => seed = number(value()?)?,
            "--steps" => options.step_limit = number(value()?)?,
            "--no-races" => options.races = false,
            "--lines" => lines = number(value()?)? as usize,
            "--print" => print = number(value()?)? as usize,
            "--help" | "-h" => return Ok(HELP.to_string()),
            other if other.starts_with("--") => return Err(format!("unknown option {other}; see --help")),
            other if path.is_none() => path = Some(other.to_string()),
            other => return Err(format!("unexpected {other}; see --help")),
        }
    }
    options.seed = seed;
    options.shared_limit = shared.max(48 * 1024);
    let path = path.ok_or("no PTX file is named; see --help")?;
    let module = module(&path)?;
    let names: Vec<&str> = module.kernels.iter().map(|k| k.name.as_str()).collect();
    let kernel = match kernel {
        Some(name) => name,
        None if names.len() == 1 => names[0].to_string(),
        None => return Err(format!("name a kernel with --kernel: {}", names.join(", "))),
    };
    let found =
        module.kernel(&kernel).ok_or(format!("no kernel {kernel}; there are {}", names.join(", ")))?;
    if texts.len() != found.params.len() {
        return Err(format!("{} arguments, {kernel} takes {}", texts.len(), found.params.len()));
    }

    let mut memory = Memory::new();
    let mut args = vec![0; found.param_bytes() as usize];
    let mut buffers = Vec::new();
    for (n, (text, param)) in texts.iter().zip(&found.params).enumerate() {
        let argument = Argument::parse(text, seed.wrapping_add(n as u64))?;
        let bytes = match argument {
            Argument::Value(bytes) => bytes,
            Argument::Buffer { ty, count, bytes, map } => {
                let size = (count * ty.bytes()) as u64;
                let address = memory.alloc(size);
                if let Some(bytes) = &bytes {
                    memory.write(address, bytes);
                }
                buffers.push((n, ty, count, address, bytes));
                match map {
                    Some(map) => map.encode(address)?,
                    None => address.to_le_bytes().to_vec(),
                }
            }
        };
        if bytes.len() != param.bytes as usize {
            return Err(format!(
                "argument {n} ({text}) has {} bytes, the parameter {}",
                bytes.len(),
                param.bytes
            ));
        }
        args[param.offset as usize..param.offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    let request = Launch { kernel: &kernel, grid, block, shared, cluster, cooperative, args };
    let started = std::time::Instant::now();
    let outcome = launch(&module, &mut memory, &request, &options).map_err(|fault| fault.to_string())?;
    let seconds = started.elapsed().as_secs_f64();

    let mut out = String::new();
    for (n, ty, count, address, before) in buffers {
        let bytes = memory.read(address, count * ty.bytes());
        let changed = if before.as_ref() == Some(&bytes) { "unchanged" } else { "written" };
        let missing = memory.unwritten(address, bytes.len());
        let shown: Vec<String> = bytes.chunks(ty.bytes()).take(print).map(|b| ty.show(b)).collect();
        let _ = writeln!(
            out,
            "argument {n}: {changed}, {missing} bytes unwritten, checksum {:016x}, {}",
            values::checksum(&bytes),
            shown.join(" ")
        );
    }
    let total = &outcome.counters.total;
    let _ = writeln!(out, "{total}\n{}", outcome.counters);
    let rate = total.instructions() as f64 / seconds / 1e6;
    let _ = writeln!(out, "{seconds:.3} s, {rate:.1} M warp instructions/s");
    let mut by_line: Vec<_> = outcome.counters.lines.iter().collect();
    by_line.sort_by_key(|(_, c)| std::cmp::Reverse(c.instructions()));
    for ((file, line), c) in by_line.into_iter().take(lines) {
        let _ = writeln!(out, "{file}:{line}: {c}");
    }
    Ok(out)
}
