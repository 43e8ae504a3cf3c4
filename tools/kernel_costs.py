"""What launches cost: counters of the machine for PTX, a row or a step, and the limits of kernels/costs.txt."""
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from kernel_images import ROOT, missing, newest_build, toolkit_program
from programs import built

COSTS = ROOT / "kernels" / "costs.txt"
# Rows of the smaller of two runs: whole tiles of every kernel; in F32 half as many.
ROWS = 256
# Steps of an epoch in one launch; counted is the second, with the barriers of the grid that each step has.
STEPS, BARRIERS = 3, 5
SUMS = (
    "lanes approximations products_half products_tf32 wgmma_half wgmma_tf32 shared_wavefronts shared_ideal read_sectors "
    "read_bytes write_sectors write_bytes unique_read_sectors unique_write_sectors barriers"
).split()


@dataclass
class Cost:
    """A kernel within an operation: what a row (or a step) adds, and what a launch takes once."""

    operation: str
    kernel: str
    row: dict
    once: dict
    threads: int
    shared: int  # bytes that the launch asks for
    used: int  # bytes up to the last that a block wrote
    blocks: int
    launches: list = field(default_factory=list)  # (blocks, counts) of each launch of a step, or phase of an epoch
    together: bool = False  # phases of one launch, with barriers of the grid between them

    @property
    def is_step(self):
        return bool(self.launches)

    @property
    def name(self):
        """Of a row of tables: the operation, where it is named after the kernel."""
        return self.operation if self.operation.startswith(self.kernel) else self.kernel


def read(line):
    """Counts of a launch as one dictionary."""
    counts = {name: line.get(name, 0) for name in SUMS}
    counts |= {pipe: n for pipe, n in line["issued"].items()}
    counts["instructions"] = sum(line["issued"].values())
    return counts


def helps(mark, kernel):
    """Whether a launch draws latents for an operation on rows; an operation of its own counts that."""
    return kernel == "perturb_f32" and mark["operation"] != "perturb_f32" and "_step" not in mark["operation"]


def added(a, b, factor=1):
    return {name: a.get(name, 0) + factor * b.get(name, 0) for name in {*a, *b}}


def costs(lines):
    """Costs from what benches/gpu --every and the driver wrote: marks, and the launches behind each."""
    found, mark = defaultdict(lambda: defaultdict(list)), None
    for line in map(json.loads, lines):
        if "operation" in line:
            mark = line
        elif mark and mark["items"] and not helps(mark, line["kernel"]) and "_epoch" not in mark["operation"]:
            found[mark["operation"], line["kernel"]][mark["items"]].append(line)
        elif mark and "round" in line:
            found[mark["operation"], line["kernel"]][mark["items"]].append(line)
    out = []
    for (operation, kernel), by_items in found.items():
        last = by_items[max(by_items)]
        if together := "_epoch" in operation:
            # Blocks first gather a batch; then each step takes as many rounds as it has barriers.
            assert len(last) == 2 + STEPS * BARRIERS, f"{operation}: {len(last)} rounds"
            last = by_items[max(by_items)] = last[1 + BARRIERS : 1 + 2 * BARRIERS]
        blocks = [prod(line["grid"]) for line in last]
        first = last[0]
        one = {"operation": operation, "kernel": kernel, "blocks": blocks[0], "shared": first["shared"]}
        one |= {"threads": prod(first["block"]), "used": max(line["shared_used"] for line in last)}
        sums = {items: {} for items in by_items}
        for items, launches in by_items.items():
            for line in launches:
                sums[items] = added(sums[items], read(line))
        if len(sums) == 1:
            ((_, row),) = sums.items()
            out.append(Cost(**one, row=row, once={}, launches=list(zip(blocks, map(read, last))), together=together))
            continue
        few, many = sorted(sums)
        row = {name: n / (many - few) for name, n in added(sums[many], sums[few], -1).items()}
        out.append(Cost(**one, row=row, once=added(sums[few], row, -few)))
    return out


def nvcc_release():
    """As in 13.0.88."""
    said = subprocess.run([toolkit_program("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"\bV(\d[\d.]*)", said)[1]


def flags():
    text = (ROOT / "build/compile.rs").read_text()
    skipped = {"-fatbin", "-Xptxas", "-v"}
    return [flag for flag in re.search(r'FLAGS: &str = "(.*)"', text)[1].split() if flag not in skipped]


def compiled_ptx(architecture, release):
    """A folder with sm_XX/*.ptx of kernels/, kept below target by a digest of what it is made from."""
    digest = hashlib.sha256(f"{release} {flags()}".encode())
    for path in sorted((ROOT / "kernels").rglob("*.cu*")):
        digest.update(f"{path.name} {len(path.read_bytes())} ".encode() + path.read_bytes())
    kept = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "ptx-model" / digest.hexdigest()[:16]
    if not (kept / architecture).is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept, prefix="part-") as part:
            compile_ptx(Path(part), architecture)
            (Path(part) / architecture).rename(kept / architecture)
    return kept


def compile_ptx(folder, architecture):
    """Makes folder/sm_XX/*.ptx of kernels/."""
    place = folder / architecture
    place.mkdir(parents=True)
    number = int(re.sub(r"\D", "", architecture))
    waiting = []
    for source in sorted((ROOT / "kernels").glob("*.cu")):
        named = re.match(r"// archs: sm_(\d+)(a?)", source.read_text())
        lowest, only = (int(named[1]), named[2]) if named else (80, "")
        if lowest > number or (only and lowest != number):
            continue
        target = architecture.replace("sm_", "compute_")
        command = [toolkit_program("nvcc"), "-ptx", f"-arch={target}", *flags()]
        command += ["-o", place / f"{source.stem}.ptx", source]
        waiting.append((source, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
        if len(waiting) >= (os.cpu_count() or 1):
            finish(*waiting.pop(0))
    for one in waiting:
        finish(*one)


def finish(source, process):
    said = process.communicate()[1]
    if process.returncode:
        missing(f"nvcc could not compile {source}: {said.strip()}")


def program():
    """benches/gpu as `cargo test` builds it; the driver lies beside it."""
    return Path(built(ROOT, "test", "--bench", "gpu")["gpu"])


def count(ptx, architecture, device, at=None, rows=ROWS):
    """Runs every operation in the machine for PTX; the lines that it leaves."""
    at = (at or program()).resolve()
    driver = at.with_name("libptx_driver.so")
    if not driver.is_file():
        missing(f"{driver} is not there: run cargo test --bench gpu --no-run")
    digits = re.sub(r"\D", "", architecture)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "libcuda.so").symlink_to(driver)
        lines = Path(folder) / "counters"
        # One block, or a cluster, goes through all rows, several tiles; work is done when it is asked for.
        settings = f"kernels={ptx},counters={lines},capability={digits[:-1]}.{digits[-1]},races=0,queue=early"
        settings += f",shared={device['shared_most']}"
        one, all_blocks = f"{settings},processors=1,occupancy=1", f"{settings},processors={device['processors']}"
        environment = {k: v for k, v in os.environ.items() if k != "CARGO"}
        environment |= {"PTX_DRIVER": one, "LD_LIBRARY_PATH": folder}
        command = [at, "--every", str(rows), "--marks", lines]
        runs = [(command, environment)]
        # Epochs in one launch take as many blocks as the device has room for, where that is enough.
        runs.append(([*command, "--epochs"], environment | {"PTX_DRIVER": all_blocks}))
        if int(digits) >= 90:
            # Kernels of older architectures that this one runs where sizes do not suit its own.
            runs.append(([*command, "--older"], environment | {"LENSMITH_CUDA_PATH": "sm80"}))
        for command, environment in runs:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                missing(f"{at} failed: {done.stderr.strip()}")
        return lines.read_text().splitlines()


def sources():
    """The digest of kernels/ that the newest build recorded."""
    return int(re.search(r"SOURCES: u64 = (\w+)", (newest_build() / "kernels.rs").read_text())[1], 16)


def number(value):
    return f"{round(value, 3):.3f}".rstrip("0").rstrip(".")


def share(used, sectors):
    return f"{100 * used / (32 * sectors):.1f}%" if sectors else "-"


def figures(cost, registers, blocks):
    """What kernels/costs.txt holds of a kernel, as text by name."""
    r = cost.row
    unique = r["unique_read_sectors"] + r["unique_write_sectors"]
    out = {
        "instructions": number(r["instructions"]),
        "once": number(cost.once.get("instructions", 0) / cost.blocks),
        "wavefronts": number(r["shared_wavefronts"]),
        "conflicts": number(r["shared_wavefronts"] - r["shared_ideal"]),
        "read": number(r["read_sectors"]),
        "read-used": share(r["read_bytes"], r["read_sectors"]),
        "written": number(r["write_sectors"]),
        "written-used": share(r["write_bytes"], r["write_sectors"]),
        "passes": number((r["read_sectors"] + r["write_sectors"]) / unique) if unique else "-",
        "shared": number(cost.used),
        "registers": str(registers),
        "blocks": str(blocks),
    }
    return out


def read_limits():
    """The release that costs.txt is for, and its figures by (operation, kernel)."""
    out, release = {}, None
    for line in COSTS.read_text().splitlines() if COSTS.is_file() else []:
        if match := re.match(r"# nvcc (\S+)", line):
            release = match[1]
        words = line.split("#")[0].split()
        if len(words) > 2:
            out[words[0], words[1]] = dict(word.split("=", 1) for word in words[2:])
    return release, out
