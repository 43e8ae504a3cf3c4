#!/usr/bin/env python3
"""Measures what Ray costs: `lensmith.ray.generate` beside the same parts started by hand, in turns.

    tools/bench_ray.py                           30 parts of 5 seconds of a core, as many at once as there are cores
    tools/bench_ray.py --parts 100 --seconds 10
    tools/bench_ray.py --json FILE               and the figures as JSON
    tools/bench_ray.py --quick                   seconds, to see that it works

By hand is `lensmith synth --part i/N` as a process of its own for each part, then `lensmith merge-manifests`. The cluster
is one node on this machine, up before the clock starts; Ray's workers are not, in the first round. A process by hand starts
and reads seeds and VAE for every part, a worker of Ray reads them too and starts once. Both folders must be
equal, byte for byte. Shown are seconds by the clock and seconds of all cores, Ray's own processes included, round by round.
The latter hold where other programs are at work on the machine.

Run it with the interpreter that has the package and Ray: target/python/bin/python.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])
# Ray's workers are nice to other processes, which would let what else the machine does fall on them alone.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

import numpy as np  # noqa: E402

try:
    import ray
except ImportError:
    sys.exit("bench_ray: Ray is missing: run it with target/python/bin/python (tools/setup_python makes it)")
import lensmith as lm  # noqa: E402
from lensmith.ray import generate  # noqa: E402
from results import write  # noqa: E402, beside this file

PROGRAM = "import sys; from lensmith import _lensmith; sys.exit(_lensmith.program(['lensmith', *sys.argv[1:]]))"
#: Shards of a part, about.
SHARDS_OF_A_PART = 4
#: Pairs of a seed, each of which is decoded by itself.
FOLD = 256


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a core's time for a part")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=16384, help="of the VAE: wide, for long parts of few bytes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.parts, options.seconds, options.rounds, options.hidden = 4, 0.2, 1, 512
    return options


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        with lm.Engine("cpu", threads=1) as engine, warnings.catch_warnings():
            # It need not learn anything.
            warnings.simplefilter("ignore", lm.LensmithWarning)
            few = self.seeds(engine, 16)
            vae = lm.Vae.fit(few, hidden=options.hidden, epochs=1, engine=engine)
            # How many pairs a core makes in a second, whatever else the machine does.
            trial = lm.synthesize(vae, few, FOLD, pairing="match", dtype="bfloat16", engine=engine)
            start = time.process_time()
            trial.write(folder / "trial")
            rate = len(trial) / (time.process_time() - start)
            seeds = self.seeds(engine, round(rate * options.seconds * options.parts / FOLD) + options.parts)
            pairs = lm.synthesize(vae, seeds, FOLD, pairing="match", engine=engine)
            self.pairs = len(pairs)
            self.shard_rows = -(-self.pairs // (options.parts * SHARDS_OF_A_PART))
            pairs.write(folder / "recipe", output="recipe")

    def seeds(self, engine, count):
        """So many pairs, in a file."""
        rng = np.random.default_rng(0)
        chosen = rng.standard_normal((count, self.options.dim), dtype=np.float32)
        rejected = chosen - 0.3 * rng.standard_normal(chosen.shape, dtype=np.float32)
        lm.PairSet(chosen, rejected, engine=engine).save(self.folder / "seeds.safetensors")
        return lm.PairSet.open(self.folder / "seeds.safetensors", engine=engine)

    def ray(self, out):
        generate(self.folder / "recipe", out, self.options.parts, {"CPU": 1}, shard_rows=self.shard_rows, allow_outside=True)

    def hand(self, out):
        vae = self.folder / "recipe" / "inputs" / "vae.safetensors"
        flags = ["--vae", vae, "--fold", FOLD, "--pairing", "match", "--shard-rows", self.shard_rows, "--out", out]

        def part(i):
            self.program("synth", self.folder / "seeds.safetensors", *flags, "--part", f"{i}/{self.options.parts}")

        with ThreadPoolExecutor(self.options.cpus) as pool:
            list(pool.map(part, range(self.options.parts)))
        self.program("merge-manifests", out)

    def program(self, *arguments):
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--device", "cpu", "--threads", "1", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_ray: lensmith {arguments[0]} failed:\n{done.stderr}")

    def measure(self, how):
        """Seconds by the clock, and those of all cores."""
        out = self.folder / how
        shutil.rmtree(out, ignore_errors=True)
        start, before = time.perf_counter(), cores_time()
        getattr(self, how)(out)
        return time.perf_counter() - start, cores_time() - before

    def require_equal(self):
        files = {path.name for how in ("ray", "hand") for path in (self.folder / how).glob("*.*")}
        for name in sorted(name for name in files if not name.startswith(".")):
            ours, theirs = ((self.folder / how / name).read_bytes() for how in ("ray", "hand"))
            if ours != theirs:
                sys.exit(f"bench_ray: expected equal bytes, found others in {name}")


def cores_time():
    """Seconds of the cores that this process and all that it started have taken, Ray's own processes too."""
    ticks, parents = {}, {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # Behind the name, which may hold anything: state, parent, ...; user, system, and both of children that ended.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        parents[int(process.name)] = int(fields[1])
        ticks[int(process.name)] = sum(map(int, fields[11:15]))

    def ours(pid):
        while pid and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid

    return sum(of for pid, of in ticks.items() if ours(pid)) / os.sysconf("SC_CLK_TCK")


def main():
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        ray.init("local", num_cpus=options.cpus, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False,
                 logging_level="error")  # fmt: skip
        took = {"ray": [], "hand": []}
        for number in range(options.rounds):
            for how in ("hand", "ray")[:: 1 if number % 2 == 0 else -1]:
                took[how].append(bench.measure(how))
            bench.require_equal()
        ray.shutdown()
    rounds = list(zip(took["hand"], took["ray"], strict=True))
    ratios = {
        name: [ours[i] / theirs[i] for theirs, ours in rounds] for i, name in enumerate(("clock", "cores"))
    }
    part = statistics.median(cores for _, cores in took["hand"]) / options.parts
    print(f"{options.parts} parts of {part:.1f} s of a core, {options.cpus} at once; {bench.pairs} pairs, d = {options.dim}; "
          f"Ray {ray.__version__}")  # fmt: skip
    print(f"{'':7}{'by the clock':^30}{'time of the cores':^30}")
    print(f"{'round':7}" + f"{'by hand':>9} {'Ray':>9} {'ratio':>8}  " * 2)
    for number, (theirs, ours) in enumerate(rounds):
        line = f"{number + 1:<7}"
        for i, name in enumerate(ratios):
            line += f"{theirs[i]:7.1f} s {ours[i]:7.1f} s {ratios[name][number]:8.3f}  "
        print(line.rstrip())
    print("medians of the ratios: " + ", ".join(f"{name} {statistics.median(of):.3f}" for name, of in ratios.items()))
    print("equal bytes")
    if options.json:
        write(options.json, {
            "version": lm.__version__,
            "ray": ray.__version__,
            "pairs": bench.pairs,
            "part_seconds": part,
            **{name: getattr(options, name) for name in ("parts", "cpus", "dim", "hidden", "rounds")},
            "seconds": took,
            "ratios": ratios,
        })  # fmt: skip


if __name__ == "__main__":
    main()
