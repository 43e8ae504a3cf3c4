#!/usr/bin/env python3
"""Measures lensmith beside PyTorch (and candle), in turns, on this machine, and records ratios.

    tools/bench_peers.py --setup               a virtual environment in target/peers with what is needed, once
    tools/bench_peers.py                       every operation; writes benches/results/<device>.json
    tools/bench_peers.py --only decode         one operation; the rest of the file stays
    tools/bench_peers.py --candle              candle too (builds benches/candle.rs)
    tools/bench_peers.py --device cuda         the same on a GPU
    tools/bench_peers.py --table               prints README's table from the files; --readme puts it there

Each operation is done by every variant and by lensmith in turns, several rounds long; medians count, and the best
variant at its best batch size is the one that lensmith is held against. Inputs are random and larger than caches;
threads are as many for all, and an operation during which others took more than 5 % of the processors is not recorded.
What rounds to BF16 before products is held against what does so too, lensmith's `--precision bf16` against the peers'
BF16, and exact F32 against F32. `tools/peer_torch.py` holds the PyTorch side: the whole of LENS as one would
write it there. lensmith's own part is `lensmith bench --only ...`, so limits and shares come from the same run.

Exit codes: 0 done, 1 something failed, 2 wrong usage or something is missing.
"""
import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
from programs import built  # noqa: E402, beside this file

ROOT = Path(__file__).resolve().parent.parent
LENSMITH = ROOT / "target" / "release" / "lensmith"
RESULTS = ROOT / "benches" / "results"
VENV = ROOT / "target" / "peers"
PACKAGES = ["torch", "numpy", "safetensors"]
MARKS = ("<!-- bench:begin -->", "<!-- bench:end -->")
# Name here, name in words, lensmith's operation and the entry of its report (on a GPU the one "on the device").
OPERATIONS = {
    "decode": ("decode to BF16", "decode", "decode to BF16"),
    "encode": ("encode from BF16", "encode", "encode from BF16"),
    "score": ("score BF16 embeddings", "score", "score BF16 embeddings"),
    "decode-score": ("synthesise + score, against decode + score", "folded", "perturb and score, folded"),
    "folded": ("synthesise + score, folded by both", "folded", "perturb and score, folded"),
    "normals": ("normals, one core", "normals", "normals, one core"),
    "vae-epoch": ("VAE epoch", "vae-epoch", "VAE epoch, batch 128"),
    "reward-epoch": ("reward epoch", "reward-epoch", "reward epoch on originals, batch 128"),
    "run": ("whole run", "run", "whole run"),
}
# What a kernel of `lensmith bench` on a GPU is called, where it has a rate on resident data.
RESIDENT = {
    "decode": "decode to BF16",
    "encode": "encode from BF16",
    "score": "score BF16",
    "decode-score": "score latents",
    "folded": "score latents",
}
# Operands of products, of peers and of lensmith.
KINDS = ["F32", "BF16"]
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
    """How much of the machine others use meanwhile: a rate beside which something else runs is none."""

    MOST = 0.05

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now():
        """Seconds: elapsed, busy on all processors, used by this process and its children."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        if not Path("/proc/stat").exists():
            return time.perf_counter(), own, own
        ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        # All but idle and waiting for the disk.
        return time.perf_counter(), (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own

    def share(self):
        """Share of the processors' time that others took since the start."""
        elapsed, busy, own = (b - a for a, b in zip(self.start, self.now()))
        return max(busy - own, 0.0) / (elapsed * os.cpu_count())


class Lensmith:
    def __init__(self, options):
        self.options = options

    def command(self, operation, kind, *more):
        o = self.options
        return [
            str(LENSMITH), "bench", "--only", operation, "--json", "--device", o.device, "--threads", str(o.threads),
            "--precision", kind.lower(), "--dim", str(o.dim), "--rows", str(o.rows), *map(str, more),
        ]  # fmt: skip

    def report(self, operation, kind, *more):
        done = subprocess.run(self.command(operation, kind, *more), capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)
            sys.exit(1)
        return json.loads(done.stdout)

    def entry(self, report, name):
        """The entry of an operation: on a GPU of the kernel on resident data, where there is one."""
        _, operation, what = OPERATIONS[name]
        entries = [e for e in report["entries"] if e["operation"] == operation]
        if self.options.device != "cpu" and name in RESIDENT:
            found = [e for e in entries if RESIDENT[name] in e["what"] and e["what"].endswith("on the device")]
        else:
            found = [e for e in entries if e["what"].startswith(what)]
        if not found:
            fail(f"lensmith bench has no entry for {name}: {[e['what'] for e in entries]}")
        return found[0]


def figures(rates, **more):
    low, high = min(rates), max(rates)
    return {"per_second": statistics.median(rates), "low": low, "high": high, "trials": len(rates), **more}


def in_turns(options, name, variants, unit, count, candle):
    """Rounds of every variant and lensmith; gives the record of the operation."""
    lensmith = Lensmith(options)
    operation = OPERATIONS[name][1]
    # Noise has no operands.
    kinds = KINDS[:1] if name == "normals" else KINDS
    limited = {kind: lensmith.report(operation, kind) for kind in kinds}
    quick = ["--repeat", 3] if options.device != "cpu" else ["--repeat", 3, "--no-limits"]
    rates = {variant: [] for variant, _, _ in variants}
    ours, theirs = {kind: [] for kind in kinds}, []
    others = Others()
    for _ in range(options.rounds):
        for variant, _, work in variants:
            # Whatever ran before has displaced the data and sent the threads to sleep.
            work()
            rates[variant].append(count / seconds_of(work, 2 * TRIAL))
        if candle is not None and name in ("decode", "encode", "score"):
            theirs.append(candle_rates(candle, options, name))
        for kind in kinds:
            ours[kind].append(lensmith.entry(lensmith.report(operation, kind, *quick), name)["per_second"])
    disturbed = others.share()
    peers = {v: figures(rates[v], batch=batch) for v, batch, _ in variants}
    for variant in theirs[0] if theirs else ():
        peers[variant] = figures([t[variant] for t in theirs])
    entries = {kind: lensmith.entry(limited[kind], name) for kind in kinds}
    ours = {kind: figures(ours[kind]) for kind in kinds}
    return record(limited[kinds[-1]], entries, unit, ours, peers) | {"others": disturbed}


def record(report, entries, unit, ours, peers):
    """The record of an operation; shares are of the limits that lensmith measured at the start of this run."""
    for kind, entry in entries.items():
        if entry["share"] is not None:
            ours[kind]["share"] = ours[kind]["per_second"] * entry["share"] / entry["per_second"]
            ours[kind]["bound_by"] = entry["bound_by"]
    best, ratios = {}, {}
    for kind in ours:
        of_kind = [p for p in peers if ("BF16" in p) == (kind == "BF16")]
        if of_kind:
            best[kind] = max(of_kind, key=lambda p: peers[p]["per_second"])
            ratios[kind] = ours[kind]["per_second"] / peers[best[kind]]["per_second"]
    return {
        "unit": unit,
        "date": datetime.date.today().isoformat(),
        "lensmith": ours,
        "peers": peers,
        "best": best,
        "ratios": ratios,
        "limits": report["limits"],
    }


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
    return in_turns(options, name, tuned(work.variants(name)), unit, count, candle)


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
    ways = [("PyTorch F32", False, False), ("PyTorch F32, compiled", True, False)]
    ways += [("PyTorch BF16 autocast", False, True), ("PyTorch BF16 autocast, compiled", True, True)]
    for name, compiled, bf16 in ways:
        torch._dynamo.reset()
        yield name, peer_torch.Training(options.device, compiled, bf16)


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
    """How far a loss is from the reference's, of the reference's mean: the mean over the seeds and its standard error."""
    scale = abs(statistics.fmean(f[name] for f in reference))
    each = [(f[name] - other[name]) / scale for f, other in zip(found, reference, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    return {"mean": statistics.fmean(each), "standard_error": error}


def whole_run(options):
    """The whole method on the same pairs, from the same initial weights; losses must agree."""
    import peer_torch
    import torch
    from safetensors.torch import save_file

    lensmith = Lensmith(options)
    chosen, rejected = peer_torch.simulated_pairs(SEEDS, options.dim, 3)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.safetensors"
        save_file({"chosen": chosen, "rejected": rejected}, str(pairs))
        data = chosen.to(options.device), rejected.to(options.device)
        ways = list(trainings(options))
        # What compiles does so before it counts, and the slower half is left out of the rounds.
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
        more = ["--pairs", pairs, "--repeat", 1]
        limited = {kind: lensmith.report("run", kind, *more) for kind in KINDS}
        first = {kind: lensmith.entry(limited[kind], "run") for kind in KINDS}
        ours = {kind: [1 / first[kind]["per_second"]] for kind in KINDS}
        theirs, losses = {way[0]: [] for way in best}, {f"lensmith {kind}": [] for kind in KINDS}
        others = Others()
        for r in range(options.rounds_of_run):
            for variant, how in best:
                torch.manual_seed(r)
                models = [m.to(options.device) for m in peer_torch.initial_models(options.dim, 64, 16, 256, r)]
                found = peer_torch.whole_run(how, *data, models)
                theirs[variant].append(found["seconds"])
                losses.setdefault(variant, []).append(found)
                print(f"  {variant}: {found}", flush=True)
            for kind in KINDS:
                report = lensmith.report("run", kind, *more, "--no-limits", "--seed", r)
                entry = lensmith.entry(report, "run")
                ours[kind].append(1 / entry["per_second"])
                losses[f"lensmith {kind}"].append(entry["details"])
                print(f"  lensmith {kind}: {ours[kind][-1]:.2f} s {entry['details']}", flush=True)
        disturbed = others.share()
    peers = {v: figures([1 / s for s in theirs[v]]) for v in theirs}
    ours = {kind: figures([1 / s for s in ours[kind]]) for kind in KINDS}
    result = record(limited[KINDS[-1]], first, "runs", ours, peers) | {"others": disturbed}
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


# Recording -------------------------------------------------------------------------------------------------------


def device_name(device):
    if device == "cpu":
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        found = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*?)\s*$", text, re.MULTILINE))
        name = found.get("model name") or platform.processor() or platform.machine()
        if not re.search(r"\d", name) and {"cpu family", "model"} <= set(found):
            # Clouds name no model: different machines would share a file.
            name = f"{name} (family {found['cpu family']}, model {found['model']})"
        return name
    import torch

    return torch.cuda.get_device_name()


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def save(path, options, operation, result, versions, report):
    """Puts one operation into the file; what others recorded there stays."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    peers = whole.setdefault("peers", {})
    peers["device"] = device_name(options.device)
    peers["detail"] = report["device"]["detail"]
    peers["threads"] = options.threads
    peers["kernels"] = report["kernels"]
    # What took part in another operation stays.
    peers["versions"] = peers.get("versions", {}) | versions
    peers["command"] = "tools/bench_peers.py" + (f" --device {options.device}" if options.device != "cpu" else "")
    peers["sizes"] = {"dim": options.dim, "rows": options.rows, "hidden": 64, "latent": 16, "reward_hidden": 256}
    operations = peers.setdefault("operations", {})
    operations[operation] = result
    peers["operations"] = {name: operations[name] for name in OPERATIONS if name in operations}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


# README's table: tests/readme.rs makes the same text from the same files ------------------------------------------


def short(value):
    """Three digits and a unit of thousands, as `lensmith bench` prints rates."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            value /= size
            break
    else:
        unit = ""
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}{unit}"


def figure(unit, per_second):
    return f"{1 / per_second:.2f} s" if unit == "runs" else f"{short(per_second)} {unit}/s"


BOUND = {"flop": "arithmetic", "write": "memory writes", "copy": "memory", "normals": "normals", "disk": "disk"}


def table(peers):
    dates = sorted({o["date"] for o in peers["operations"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(peers["versions"].items()))
    lines = [
        f"{peers['device']} ({peers['detail']}, {peers['threads']} threads), d = {peers['sizes']['dim']}, {when}, "
        f"`{peers['command']}` ({versions}):",
        "",
        "| what | lensmith F32 | best peer in F32 | ratio | lensmith BF16 | best peer in BF16 | ratio | shares of the limit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, o in peers["operations"].items():
        cells = [OPERATIONS[name][0]]
        shares = []
        for kind in KINDS:
            ours = o["lensmith"].get(kind)
            cells.append(figure(o["unit"], ours["per_second"]) if ours else "")
            if kind in o["best"]:
                theirs = o["peers"][o["best"][kind]]["per_second"]
                cells.append(f"{figure(o['unit'], theirs)} ({o['best'][kind]})")
                cells.append(f"{ours['per_second'] / theirs:.1f}")
            else:
                cells += ["", ""]
            if ours and "share" in ours:
                shares.append(f"{100 * ours['share']:.0f} % of {BOUND[ours['bound_by']]}")
        cells.append(", ".join(shares))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables():
    """The tables of all files that hold peers, by file name."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        peers = json.loads(path.read_text()).get("peers")
        if peers:
            found.append(table(peers))
    return "\n\n".join(found)


def write_readme():
    path = ROOT / "README.md"
    text = path.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    path.write_text(f"{before}{MARKS[0]}\n{tables()}\n{MARKS[1]}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make a virtual environment with what is needed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", action="append", choices=list(OPERATIONS), help="operations; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over which medians are taken")
    parser.add_argument("--rounds-of-run", type=int, default=3, help="rounds of the whole run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of everything")
    parser.add_argument("--dim", type=int, default=4096, help="dimension of the embeddings")
    parser.add_argument("--rows", type=int, default=None, help="embeddings of one call")
    parser.add_argument("--candle", action="store_true", help="measure candle too")
    parser.add_argument("--busy", action="store_true", help="record although others use the machine")
    parser.add_argument("--out", type=Path, help="file of the results; benches/results/<device>.json by default")
    parser.add_argument("--table", action="store_true", help="print README's table")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    if options.setup:
        return setup()
    if options.table or options.readme:
        print(tables()) if options.table else write_readme()
        return None
    # Compilers are children that are waited for, so that their time is not taken for that of others.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    require_packages()
    import torch

    if options.device not in ("cpu", "cuda"):
        fail("--device is cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        fail("PyTorch finds no GPU here")
    if not LENSMITH.exists():
        fail("target/release/lensmith is not there: cargo build --release")
    options.rows = options.rows or (16384 if options.device == "cpu" else 1 << 18)
    torch.set_num_threads(options.threads)
    candle = built(ROOT, "bench", "--bench", "candle", "--features", "candle")["candle"] if options.candle else None
    versions = {"PyTorch": torch.__version__.split("+")[0], "numpy": __import__("numpy").__version__}
    if candle:
        versions["candle"] = candle_rates(candle, options, "version")["version"]
    disturbed = []
    path = options.out or RESULTS / f"{slug(device_name(options.device))}.json"
    for name in options.only or list(OPERATIONS):
        print(OPERATIONS[name][0], flush=True)
        report = Lensmith(options).report("normals", "F32", "--no-limits", "--repeat", 1)
        if name == "normals":
            result = normals(options)
        elif name == "run":
            result = whole_run(options)
        elif name in ("vae-epoch", "reward-epoch"):
            result = epoch(options, name)
        else:
            result = inference(options, name, candle)
        versions["lensmith"] = report["lensmith"]
        if result["others"] > Others.MOST and not options.busy:
            percent = f"{100 * result['others']:.0f} %"
            print(f"  not recorded: others took {percent} of the processors; --busy records it all the same")
            disturbed.append(name)
            continue
        save(path, options, name, result, versions, report)
        for peer, found in result["peers"].items():
            print(f"  {peer}: {figure(result['unit'], found['per_second'])}")
        for kind, ours in result["lensmith"].items():
            limit = f", {100 * ours['share']:.0f} % of {BOUND[ours['bound_by']]}" if ours.get("share") else ""
            ratio = f": {result['ratios'][kind]:.2f} x {result['best'][kind]}" if kind in result["ratios"] else ""
            print(f"  lensmith {kind}: {figure(result['unit'], ours['per_second'])}{ratio}{limit}", flush=True)
    if disturbed:
        print(f"tools/bench_peers.py: disturbed, and not recorded: {', '.join(disturbed)}", file=sys.stderr)
        return 1
    return None


if __name__ == "__main__":
    sys.exit(main())
