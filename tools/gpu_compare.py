"""Kernels that were edited where the GPU is, timed beside those that were built: tools/gpu_check --compare."""
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gpu_stages import Stages, tool
from processes import run
from results import Copies, slug

# Seconds of one nvcc, and of the trials of one kernel.
COMPILE, MEASURE = 300, 60


def fail(text, code=1):
    print(f"tools/gpu_check --compare: {text}", file=sys.stderr)
    return code


def compiled(sources, out, stages, nvcc):
    """Compiles kernel files for the device with the flags of the build; gives those that failed."""
    major, minor = stages.found["capability"]
    # 9.0a: the variant of 9.0 with instructions that later GPUs lack.
    number = f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"
    flags = [*stages.found["flags"], "-gencode", f"arch=compute_{number},code=sm_{number}"]

    def one(source):
        done = run([nvcc, *flags, "-o", Path(out) / f"{source.stem}.fatbin", source], COMPILE)
        return (source.name, done) if done.status != "passed" else None

    return [failed for failed in stages.at_once(one, sources) if failed]


def changes(old, new):
    """Median of new / old over the turns, and its spread: from the first to the third quartile."""
    ratios = sorted(b / a for a, b in zip(old, new, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return statistics.median(ratios), low, high


def compare(options, programs):
    """Prints for each kernel of the folder the ratio of the new rate to the old; exit codes as tools/gpu_check's."""
    start = time.time()
    stages = Stages(programs, options.small, options.jobs, {"device": 30, "rates": 3600})
    found = stages.run("device")
    if any(step.get("code") == 3 for step in found["steps"]):
        return fail(f"no GPU: {found['reason']}", 3)
    if found["status"] != "passed":
        return fail("\n".join(found["steps"][0].get("said", [])))
    nvcc = tool("nvcc")
    if nvcc is None:
        return fail("no nvcc in CUDA_HOME, PATH or /usr/local/cuda/bin")
    stages.stage, stages.deadline = "rates", time.monotonic() + 3600
    _, named = stages.named()
    here = {source.name for source in options.compare.glob("*.cu")}
    chosen = [n for n in named if n["source"] in here and (not options.kernels or n["name"] in options.kernels)]
    unknown = set(options.kernels) - {n["name"] for n in named}
    if unknown or not chosen:
        names = ", ".join(n["name"] for n in named if n["source"] in here)
        found = ", ".join(sorted(unknown)) or "none"
        return fail(f"expected kernels of {options.compare}/*.cu, which are {names or 'none'}; found {found}", 2)
    sources = [options.compare / name for name in sorted({n["source"] for n in chosen})]
    with tempfile.TemporaryDirectory() as images:
        failed = compiled(sources, images, stages, nvcc)
        for name, done in failed:
            fail(f"{name}: nvcc failed\n" + "\n".join(line for line in done.last_lines() if "ptxas info" not in line))
        if failed:
            return 1
        print(f"{len(sources)} files compiled in {time.time() - start:.0f} s", flush=True)
        results, bad = [], 0
        for one in chosen:
            arguments = ["--kernel", one["name"], "--images", images, "--turns", str(options.turns)]
            done = stages.gpu(arguments, share=MEASURE / 3600)
            measured = stages.objects(done)
            if done.status != "passed" or not measured:
                bad += 1
                results.append({"name": one["name"], "status": done.status, "said": done.last_lines()})
                print(f"{one['name']:28} {done.status}: {' '.join(done.last_lines(2))}", flush=True)
                continue
            ratio, low, high = changes(measured[0]["old"], measured[0]["new"])
            results.append(measured[0] | {"status": "passed", "ratio": ratio, "quartiles": [low, high]})
            old, new = (statistics.median(measured[0][which]) for which in ("old", "new"))
            same = "same output" if measured[0]["same_output"] else "OTHER OUTPUT"
            bad += not measured[0]["same_output"]
            spread = f"x {ratio:.3f} ({low:.3f} to {high:.3f})"
            print(f"{one['name']:28} {old:12.4g} -> {new:12.4g} a second  {spread}  {same}", flush=True)
    record = {"device": stages.found["device"], "kernels": stages.found["kernels"], "compared": results}
    copies = Copies("tools/gpu_check", [options.out])
    copies.update(f"{slug(stages.found['name'])}-compared.json", lambda _: record)
    if options.out and not copies.written:
        print(json.dumps(record))
    return 1 if bad else 0
