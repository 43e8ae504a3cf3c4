"""What tools/bench_peers.py records in benches/results, and the tables of docs/performance.md that are made from it."""
import datetime
import json
import math
import platform
import re
import statistics
from pathlib import Path

from results import slug

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
PAGE = ROOT / "docs" / "performance.md"
# The tables stand between these lines of the page.
MARKS = ("<!-- bench:begin -->\n", "\n<!-- bench:end -->")
# Key in the result files: name in the tables, `--only` of `lensmith bench`, start of the entry's `what` in its report.
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
    "synth": ("synthesise pairs to host memory", "synthesise", "synthesise pairs"),
    "synth-disk": ("synthesise pairs to disk", "disk", "synthesise pairs to disk"),
}
# Operand types of the matrix products, in lensmith and in its peers.
KINDS = ["F32", "BF16"]


def figures(rates, **more):
    low, high = min(rates), max(rates)
    return {"per_second": statistics.median(rates), "low": low, "high": high, "trials": len(rates), **more}


def record(limits, entries, unit, ours, peers):
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
        "limits": limits,
    }


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


def device_file(device):
    """The file of a device's results."""
    return f"{slug(device_name(device))}.json"


def with_operation(whole, options, operation, result, versions, report):
    """Puts one operation into what a file holds; what others recorded there stays."""
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
    return whole


# The tables of docs/performance.md --------------------------------------------------------------------------------


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


BOUND = {
    "flop": "arithmetic",
    "read": "memory reads",
    "write": "memory writes",
    "copy": "memory",
    "normals": "normals",
    "disk": "disk",
}


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


def recorded():
    """What the result files hold about peers, by file name."""
    found = {path.name: json.loads(path.read_text()).get("peers") for path in sorted(RESULTS.glob("*.json"))}
    return {name: peers for name, peers in found.items() if peers}


def tables():
    return "\n\n".join(table(peers) for peers in recorded().values())


def parts_of_page():
    """The page before its tables, the tables, and the page after them; None if the page or a mark is missing."""
    try:
        before, rest = PAGE.read_text().split(MARKS[0])
        there, after = rest.split(MARKS[1])
    except (OSError, ValueError):
        return None
    return before, there, after


def write_page():
    """Puts the tables into the page; gives a complaint, or None."""
    parts = parts_of_page()
    if parts is None:
        return f"{PAGE.relative_to(ROOT)} is missing, or does not have the two lines that the tables stand between"
    PAGE.write_text(parts[0] + MARKS[0] + tables() + MARKS[1] + parts[2])
    return None


def contradictions(name, operation):
    """Where the figures of one operation contradict each other."""
    ours, peers = operation["lensmith"], operation["peers"]
    if not ours or not set(ours) <= set(KINDS):
        yield f"{name}: lensmith was measured in {list(ours)}"
        return
    for who, found in (ours | peers).items():
        if not 0 < found["low"] <= found["per_second"] <= found["high"] < math.inf:
            yield f"{name}, {who}: the median is not between the lowest and the highest rate"
    for kind in KINDS:
        rates = [peer["per_second"] for who, peer in peers.items() if ("BF16" in who) == (kind == "BF16")]
        best = operation["best"].get(kind)
        if (best is not None) != bool(rates) or (rates and peers[best]["per_second"] != max(rates)):
            yield f"{name}: {best} is not the best peer in {kind}"
        elif rates and kind not in ours:
            yield f"{name}: a peer in {kind}, but not lensmith"
        elif rates and not math.isclose(operation["ratios"][kind] * max(rates), ours[kind]["per_second"], rel_tol=1e-9):
            yield f"{name}: the ratio in {kind} is not that of the rates"


def complaints():
    """What is wrong with the result files, or with the page that shows them."""
    found = []
    for file, peers in recorded().items():
        for name, operation in peers["operations"].items():
            if name in OPERATIONS:
                found += [f"{file}: {text}" for text in contradictions(name, operation)]
            else:
                found.append(f"{file}: unknown operation {name}")
    if found:
        return found
    parts, page = parts_of_page(), PAGE.relative_to(ROOT)
    if parts is None:
        return [f"{page} is missing, or does not have the two lines that the tables stand between"]
    if parts[1] != tables():
        return [f"the tables of {page} are not those of benches/results: tools/bench_peers.py --write makes them anew"]
    return []
