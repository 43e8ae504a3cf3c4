#!/usr/bin/env python3
"""Measures lensmith beside PyTorch (and candle), in turns, on this machine, and records ratios.

    tools/bench_peers.py --setup               a virtual environment in target/peers with what is needed, once
    tools/bench_peers.py                       every operation; writes benches/results/<device>.json
    tools/bench_peers.py --only decode         one operation; the rest of the file stays
    tools/bench_peers.py --candle              candle too (builds benches/candle.rs)
    tools/bench_peers.py --device cuda         the same on a GPU, in parts of a minute or so, 9 minutes in all;
                                               --out FOLDER keeps a copy, --dry-run prints the plan
    tools/bench_peers.py --write               puts the tables of the recorded figures into docs/performance.md
    tools/bench_peers.py --check               whether the figures agree with themselves, and the page with them; needs
                                               nothing but Python

Every operation is done by each variant of the peers, at its best batch size, and by lensmith, in turns and
several rounds long. Medians count, and lensmith is compared with the best variant: F32 with exact F32,
`--precision bf16` with the peers' BF16, since both round the operands of products. Inputs are random and
larger than caches, and all have equally many threads. An operation during which others took more than 5 % of
the processors is not recorded. tools/peer_torch.py is the PyTorch side; lensmith's is `lensmith bench --only
...`, so that limits and shares come from the same run.

On a GPU, lensmith's kernels (benches/gpu.rs) and PyTorch work on data that is there already; variants include
`torch.compile(mode="reduce-overhead")`, and cuBLAS does the product of the score alone, which bounds it. Each
operation runs in a process of its own with a time limit, and is recorded when it is done. Without cargo, the
programs are those that `tools/gpu_check --build` packed.

Exit codes: 0 done, 1 something failed, 2 wrong usage or something is missing.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
import peer_record  # noqa: E402, beside this file
from peer_lensmith import RESIDENT, Lensmith, program  # noqa: E402
from peer_record import KINDS, OPERATIONS, RESULTS, figure, figures, record  # noqa: E402
from processes import Done, run  # noqa: E402
from programs import built  # noqa: E402
from results import Copies, read, write  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "peers"
PACKAGES = ["torch", "numpy", "safetensors"]
# The operations on a GPU, the most telling first, and the seconds that each may take, compilers included.
ON_GPU = {
    "score": 80,
    "decode": 80,
    "encode": 70,
    "run": 90,
    "folded": 60,
    "synth": 50,
    "vae-epoch": 50,
    "reward-epoch": 50,
    "decode-score": 60,
    "synth-disk": 60,
}
# On a CPU, decoding ends in the host's memory anyway.
ON_CPU = [name for name in OPERATIONS if name not in ("synth", "synth-disk")]
TRIAL = 0.2
SEEDS = 1000


def fail(text):
    print(f"tools/bench_peers.py: {text}", file=sys.stderr)
    sys.exit(2)


def setup():
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(VENV / "bin" / "pip"), "install", *PACKAGES], check=True)
    print(f"{VENV.relative_to(ROOT)} is ready; tools/bench_peers.py takes it by itself")


def require_packages():
    """Runs on in the environment of --setup if the packages are missing here."""
    missing = []
    for name in PACKAGES:
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if not missing:
        return
    python = VENV / "bin" / "python"
    if python.exists() and Path(sys.prefix) != VENV:
        os.execv(python, [str(python), *sys.argv])
    fail(f"{', '.join(missing)} missing: pip install {' '.join(PACKAGES)}, or tools/bench_peers.py --setup")


# Measuring -------------------------------------------------------------------------------------------------------


def seconds_of(work, least=TRIAL):
    """Seconds of one call, over as many as take `least`."""
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        taken = time.perf_counter() - start
        if taken >= least:
            return taken / calls


def tuned(variants, least=TRIAL):
    """The best batch size of each variant: its name, the size and the work."""
    out = []
    for name, batches, make in variants:
        best = None
        for batch in batches:
            work = make(batch)
            work()
            seconds = min(seconds_of(work, least) for _ in range(2))
            if best is None or seconds < best[0]:
                best = (seconds, batch, work)
        out.append((name, best[1], best[2]))
        print(f"  {name}: {best[0] * 1e3:.1f} ms at batches of {best[1]}", flush=True)
    return out


class Others:
    """What other processes take of the processors: rates measured beside them are not recorded."""

    # The largest share at which rates still are.
    MOST = 0.05

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now():
        """Seconds elapsed, seconds of all processors that were busy, and those of this process and its children."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        if not Path("/proc/stat").exists():
            return time.perf_counter(), own, own
        ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        # Fields 4 and 5 are idle time and waiting for the disk.
        return time.perf_counter(), (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own

    def share(self):
        """Share of the processors' time that others took since the start."""
        elapsed, busy, own = (b - a for a, b in zip(self.start, self.now()))
        return max(busy - own, 0.0) / (elapsed * os.cpu_count())


def in_rounds(rounds, works):
    """Runs every work once a round, in turns, so that a slow minute of the machine slows all of them. A work gives
    rates by name. Gives the rates of all rounds by name, and the share of the processors that others took."""
    found, others = {}, Others()
    for _ in range(rounds):
        for work in works:
            for name, rate in work().items():
                found.setdefault(name, []).append(rate)
    return found, others.share()


class Comparison:
    """One operation of lensmith beside its peers."""

    def __init__(self, options, name, unit, *more):
        self.options, self.name, self.unit, self.more = options, name, unit, more
        self.lensmith = Lensmith(options)
        # Normals are no products, and have no operand type.
        self.kinds = KINDS[:1] if name == "normals" else KINDS
        # Limits are measured here, and the rounds do without them.
        self.first = {kind: self.lensmith.measured(name, kind, *more) for kind in self.kinds}

    def ours(self, *more):
        """Works of lensmith for `in_rounds`."""

        def work(kind):
            return {kind: self.lensmith.measured(self.name, kind, *self.more, *more, limits=False)["per_second"]}

        return [lambda kind=kind: work(kind) for kind in self.kinds]

    def record(self, found, disturbed, batches=None, floors=()):
        """The record of the rates that were found. `floors` names those that bound a rate, and are no peers."""
        of = {name: figures(rates) for name, rates in found.items()}
        for name, batch in (batches or {}).items():
            of[name]["batch"] = batch
        ours = {kind: of.pop(kind) for kind in self.kinds}
        floors = {name: of.pop(name) for name in floors}
        limits = self.first[self.kinds[-1]]["limits"]
        result = record(limits, self.first, self.unit, ours, of) | {"others": disturbed}
        return result | ({"floors": floors} if floors else {})


def in_turns(options, name, variants, unit, count, candle, floors=()):
    """Rounds of every variant and lensmith; gives the record of the operation. `floors` take part, but as bounds."""
    comparison = Comparison(options, name, unit)

    def peer(variant, work):
        # Not counted: the work before this one has evicted its data from the caches and let its threads sleep.
        work()
        return {variant: count / seconds_of(work, 2 * TRIAL)}

    every = [*variants, *floors]
    works = [lambda variant=variant, work=work: peer(variant, work) for variant, _, work in every]
    if candle is not None and name in ("decode", "encode", "score"):
        works.append(lambda: candle_rates(candle, options, name))
    found, disturbed = in_rounds(options.rounds, works + comparison.ours("--repeat", 3))
    batches = {variant: batch for variant, batch, _ in every}
    return comparison.record(found, disturbed, batches, [variant for variant, _, _ in floors])


def candle_rates(program, options, name):
    command = [program, "--only", name, "--dim", str(options.dim), "--rows", str(options.rows)]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        sys.exit(1)
    return json.loads(done.stdout.splitlines()[-1])


def inference(options, name, candle):
    import peer_torch

    work = peer_torch.Inference(options.device, options.rows, options.dim)
    unit, count = work.unit(name)
    floors = tuned(work.floors(name))
    return in_turns(options, name, tuned(work.variants(name)), unit, count, candle, floors)


def normals(options):
    import peer_torch
    import torch

    count = 1 << 18
    torch.set_num_threads(1)
    variants = [(name, None, work) for name, work in peer_torch.normals(count)]
    result = in_turns(options, "normals", variants, "normals", count, None)
    torch.set_num_threads(options.threads)
    return result


def trainings(options):
    """The ways of training that are compared: name and `Training`."""
    import peer_torch
    import torch

    torch._inductor.config.freezing = False
    for kind, bf16 in (("F32", False), ("BF16 autocast", True)):
        for words, mode in peer_torch.modes(options.device):
            torch._dynamo.reset()
            yield f"PyTorch {kind}{words}", peer_torch.Training(options.device, mode, bf16)


def epoch(options, name):
    import peer_torch
    import torch

    pairs = 1024
    sides = [torch.randn(pairs, options.dim, device=options.device) for _ in range(2)]
    order = torch.arange(pairs, device=options.device)[:, None].expand(-1, 2).contiguous()
    variants = []
    for variant, how in trainings(options):
        vae, reward = peer_torch.initial_models(options.dim, 64, 16, 256, 0)
        vae, reward = vae.to(options.device), reward.to(options.device)

        def work(how=how, vae=vae, reward=reward, optimisers=(how.adam(vae), how.adam(reward))):
            if name == "vae-epoch":
                how.vae_epoch(vae, optimisers[0], *sides, 16)
            else:
                how.reward_epoch(reward, optimisers[1], *sides, order)

        work()
        variants.append((variant, peer_torch.BATCH, work))
    return in_turns(options, name, variants, "pairs", pairs, None)


def apart(found, reference, name):
    """How far a loss is from the reference's, of its mean: the mean over the seeds and its standard error."""
    scale = abs(statistics.fmean(f[name] for f in reference))
    each = [(f[name] - other[name]) / scale for f, other in zip(found, reference, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    return {"mean": statistics.fmean(each), "standard_error": error}


def whole_run(options):
    """The whole method on the same pairs, from the same initial weights; losses must agree."""
    import peer_torch
    import torch
    from safetensors.torch import save_file

    chosen, rejected = peer_torch.simulated_pairs(SEEDS, options.dim, 3)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.safetensors"
        save_file({"chosen": chosen, "rejected": rejected}, str(pairs))
        data = chosen.to(options.device), rejected.to(options.device)
        ways = list(trainings(options))
        # A short run first, so that compiling is not timed; then a tenth of a run, by which the two fastest are chosen.
        once = {}
        for variant, how in ways:
            models = [m.to(options.device) for m in peer_torch.initial_models(options.dim, 64, 16, 256, 0)]
            peer_torch.whole_run(how, *data, models, vae_epochs=1, reward_epochs=1)
            models = [m.to(options.device) for m in peer_torch.initial_models(options.dim, 64, 16, 256, 0)]
            once[variant] = peer_torch.whole_run(how, *data, models, vae_epochs=10, reward_epochs=2)["seconds"]
            print(f"  {variant}: {once[variant]:.2f} s for a tenth", flush=True)
        best = sorted(ways, key=lambda way: once[way[0]])[:2]
        # F32 is what losses are compared with, so it takes part in any case.
        best += [way for way in ways if way[0] == "PyTorch F32" and way not in best]
        comparison = Comparison(options, "run", "runs", "--pairs", pairs, "--repeat", 1)
        losses = {variant: [] for variant, _ in best} | {f"lensmith {kind}": [] for kind in KINDS}

        def peer(variant, how):
            seed = len(losses[variant])
            torch.manual_seed(seed)
            models = [m.to(options.device) for m in peer_torch.initial_models(options.dim, 64, 16, 256, seed)]
            losses[variant].append(peer_torch.whole_run(how, *data, models))
            print(f"  {variant}: {losses[variant][-1]}", flush=True)
            return {variant: 1 / losses[variant][-1]["seconds"]}

        def ours(kind):
            details = losses[f"lensmith {kind}"]
            more = [*comparison.more, "--seed", len(details)]
            entry = comparison.lensmith.measured("run", kind, *more, limits=False)
            details.append(entry["details"])
            print(f"  lensmith {kind}: {1 / entry['per_second']:.2f} s {entry['details']}", flush=True)
            return {kind: entry["per_second"]}

        works = [lambda variant=variant, how=how: peer(variant, how) for variant, how in best]
        works += [lambda kind=kind: ours(kind) for kind in KINDS]
        result = comparison.record(*in_rounds(options.rounds_of_run, works))
    names = ["vae_loss", "first_reward_loss", "reward_loss"]
    # Each seed draws other noise, batches and pairs: what is compared is the mean over the rounds, and it is as sure as
    # its standard error says.
    result["losses"], result["losses_apart"], result["vae_seconds"] = {}, {}, {}
    for variant, found in losses.items():
        result["losses"][variant] = {n: statistics.fmean(f[n] for f in found) for n in names}
        result["losses_apart"][variant] = {n: apart(found, losses["PyTorch F32"], n) for n in names}
        result["vae_seconds"][variant] = statistics.median(f["vae_seconds"] for f in found)
    for variant in (f"lensmith {kind}" for kind in KINDS):
        print(f"  {variant}: losses apart by {result['losses_apart'][variant]}", flush=True)
    return result


def synthesis(options, name):
    """Synthetic pairs that end in the host's memory or on its disk."""
    import peer_torch

    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        to_disk = name == "synth-disk"
        path = Path(folder) / "pairs" if to_disk else None
        how = peer_torch.Synthesis(options.device, 4096, options.dim, path)
        works = {"PyTorch F32": how.work(False), "PyTorch BF16": how.work(True)}
        # As many bytes for both; `lensmith bench` writes four pairs for each of --rows.
        more = ["--rows", 8192, "--folder", folder] if to_disk else []
        comparison = Comparison(options, name, "pairs", "--seeds", 4096, "--repeat", 2, *more)

        def peer(variant):
            return {variant: how.pairs / seconds_of(works[variant], 0)}

        peers = [lambda variant=variant: peer(variant) for variant in works]
        return comparison.record(*in_rounds(options.rounds, peers + comparison.ours()))


# Parts -----------------------------------------------------------------------------------------------------------


class Destination:
    """Where results go: benches/results and --out, or a file that --out names."""

    def __init__(self, options):
        out = options.out
        self.file = out if out and out.suffix == ".json" else None
        self.copies = Copies("tools/bench_peers.py", [RESULTS, out])

    def update(self, options, change):
        if self.file:
            write(self.file, change(read(self.file)))
        else:
            self.copies.update(peer_record.device_file(options.device), change)


def measure(options, name, candle):
    if name == "normals":
        return normals(options)
    if name == "run":
        return whole_run(options)
    if name in ("vae-epoch", "reward-epoch"):
        return epoch(options, name)
    if name in ("synth", "synth-disk"):
        return synthesis(options, name)
    return inference(options, name, candle)


def in_this_process(options, names):
    """Measures operations one after the other and records each; gives those that others disturbed."""
    import torch

    torch.set_num_threads(options.threads)
    candle = built(ROOT, "bench", "--bench", "candle", "--features", "candle")["candle"] if options.candle else None
    versions = {"PyTorch": torch.__version__.split("+")[0], "numpy": __import__("numpy").__version__}
    if candle:
        versions["candle"] = candle_rates(candle, options, "version")["version"]
    disturbed, destination = [], Destination(options)
    for name in names:
        print(OPERATIONS[name][0], flush=True)
        report = Lensmith(options).report("normals", "F32", "--no-limits", "--repeat", 1)
        result = measure(options, name, candle)
        versions["lensmith"] = report["lensmith"]
        if result["others"] > Others.MOST and not options.busy:
            percent = f"{100 * result['others']:.0f} %"
            print(f"  not recorded: others took {percent} of the processors; --busy records it all the same")
            disturbed.append(name)
            continue
        put = lambda old: peer_record.with_operation(old, options, name, result, versions, report)  # noqa: E731
        destination.update(options, put)
        for peer, found in (result["peers"] | result.get("floors", {})).items():
            print(f"  {peer}: {figure(result['unit'], found['per_second'])}")
        for kind, ours in result["lensmith"].items():
            bound = peer_record.BOUND[ours["bound_by"]] if ours.get("share") else None
            limit = f", {100 * ours['share']:.0f} % of {bound}" if bound else ""
            ratio = f": {result['ratios'][kind]:.2f} x {result['best'][kind]}" if kind in result["ratios"] else ""
            print(f"  lensmith {kind}: {figure(result['unit'], ours['per_second'])}{ratio}{limit}", flush=True)
    return disturbed


def in_parts(options, names):
    """A process and a limit for each operation, so that what hangs or fails costs itself only."""
    start, failed, destination = time.monotonic(), [], Destination(options)
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    for name in names:
        left = options.limit - (time.monotonic() - start)
        seconds = min(options.budget or ON_GPU[name], left)
        if options.dry_run:
            print(f"{name:14} {ON_GPU[name]:4} s  {OPERATIONS[name][0]}")
            continue
        if left > 0:
            done = run([sys.executable, __file__, *words, "--part", name], seconds)
        else:
            done = Done("not run", None, "", "the time of all parts was used up before", 0.0)
        said = done.last_lines() if done.status != "passed" else []
        print(f"{done.out}  {name}: {done.status} after {done.seconds:.0f} s")
        print("".join(f"    {line}\n" for line in said), end="", flush=True)
        failed += [name] if said else []
        part = {"status": done.status, "seconds": round(done.seconds, 1), "said": said}

        def put(old, name=name, part=part):
            # Beside the figures, which the tables are made from.
            old.setdefault("peer_parts", {})[name] = part
            return old

        destination.update(options, put)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make a virtual environment with what is needed")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where everything runs")
    parser.add_argument("--only", action="append", choices=list(OPERATIONS), help="operations; all by default")
    parser.add_argument("--rounds", type=int, default=None, help="rounds over which medians are taken: 5, on a GPU 3")
    parser.add_argument("--rounds-of-run", type=int, default=3, help="rounds of the whole run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of everything")
    parser.add_argument("--dim", type=int, default=4096, help="dimension of the embeddings")
    parser.add_argument("--rows", type=int, default=None, help="embeddings of one call")
    parser.add_argument("--candle", action="store_true", help="measure candle too")
    parser.add_argument("--busy", action="store_true", help="record although others use the machine")
    parser.add_argument("--out", type=Path, help="a folder for a copy, or FILE.json instead of the usual file")
    parser.add_argument("--limit", type=float, default=540, help="on a GPU: seconds of all parts together")
    parser.add_argument("--budget", type=float, help="on a GPU: seconds of each part, instead of its own")
    parser.add_argument("--scratch", type=Path, help="folder that pairs are written to and removed from")
    parser.add_argument("--dry-run", action="store_true", help="on a GPU: print the parts and their limits")
    parser.add_argument("--part", choices=list(ON_GPU), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--check", action="store_true", help="fail if docs/performance.md is not what --write makes")
    options = parser.parse_args()
    if options.setup:
        return setup()
    if options.write or options.check:
        # Writing what contradicts itself is an error too.
        complaints = [text for text in [options.write and peer_record.write_page()] if text] or peer_record.complaints()
        for text in complaints:
            print(f"tools/bench_peers.py: {text}", file=sys.stderr)
        return 1 if complaints else None
    gpu = options.device == "cuda"
    names = options.only or (list(ON_GPU) if gpu else ON_CPU)
    if gpu and "normals" in names:
        fail("normals are measured on one core: --device cpu")
    options.rows = options.rows or (RESIDENT[1] if gpu else 16384)
    options.rounds = options.rounds or (3 if gpu else 5)
    if gpu and (options.dim, options.rows) != RESIDENT:
        fail("--device cuda measures kernels at --dim {} and --rows {}".format(*RESIDENT))
    if gpu and options.dry_run:
        in_parts(options, names)
        return None
    if not gpu:
        # Compilers are children that are waited for, so that their time is not taken for that of others.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    require_packages()
    import torch

    if gpu and not torch.cuda.is_available():
        fail("PyTorch finds no GPU here")
    missing = [name for name in ["lensmith", *(["gpu"] if gpu else [])] if program(name) is None]
    if missing:
        fail(f"{', '.join(missing)} not built: cargo build --release, or tools/gpu_check --build for another machine")
    if options.part or not gpu:
        bad = in_this_process(options, [options.part] if options.part else names)
        words = "disturbed, and not recorded"
    else:
        bad = in_parts(options, names)
        words = "did not come through"
    if bad:
        print(f"tools/bench_peers.py: {words}: {', '.join(bad)}", file=sys.stderr)
        return 1
    return None


if __name__ == "__main__":
    sys.exit(main())
