#!/usr/bin/env python3
"""Plans large runs: what 10^6 to 10^10 pairs take on many machines, simulated from rates measured on one.

    tools/plan_scale.py                                        10^9 embeddings from 10^6 seeds on 100 machines
    tools/plan_scale.py --pairs 1e8 --output latents --machines 4 --store none
    tools/plan_scale.py measure --lensmith PATH                measures the rates of this machine: a minute or two, 6 GB of disk
    tools/plan_scale.py validate --lensmith PATH               small runs of several processes beside their simulation
    tools/plan_scale.py memory --lensmith PATH --pairs 1e8     memory over a run; killed and resumed, equal checksums
    tools/plan_scale.py --write | --check                      the tables of docs/design/scale.md, from benches/scale.json

What is measured goes to benches/scale.json. What a cluster is (cores, network, object store, failures) is given by flags;
the defaults are assumptions, listed by --help. The model is in tools/scale_model.py. Only Python itself is needed.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import results  # noqa: E402, beside this file
import scale_measure  # noqa: E402, beside this file
from scale_model import Cluster, Rates, Work, simulate  # noqa: E402, beside this file

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "scale.json"
PAGE = ROOT / "docs" / "design" / "scale.md"
BEGIN, END = "<!-- plan:begin -->\n", "<!-- plan:end -->\n"
OUTPUTS = ("latents", "embeddings", "recipe")
WORDS = {"recipe": "a recipe, read once"}


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="plan", choices=["plan", "measure", "validate", "memory"])
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    group = parser.add_argument_group("the run")
    group.add_argument("--pairs", type=float, default=None, help="10^9; of memory 10^8")
    group.add_argument("--seeds", type=float, default=None, help="a thousandth of the pairs")
    group.add_argument("--output", choices=OUTPUTS, default="embeddings")
    group.add_argument("--parts", type=int, help="by default one a core, as far as there are shards")
    group.add_argument("--shard-rows", type=int, help="by default lensmith's own rule")
    add_fields(parser.add_argument_group("the cluster (assumed, not measured)"), Cluster)
    add_fields(parser.add_argument_group("rates of one machine (by default from benches/scale.json)"), Rates)
    parser.add_argument("--rates", type=Path, default=RECORD, help="file with measured rates")
    group = parser.add_argument_group("measuring")
    group.add_argument("--lensmith", type=Path, help="the program, as target/release/lensmith")
    group.add_argument("--folder", type=Path, help="where runs are written and removed; by default a temporary one")
    group.add_argument("--csv", type=Path, help="memory: the samples, a line each")
    group.add_argument("--quick", action="store_true", help="seconds, to see that it works; nothing is recorded")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/design/scale.md")
    parser.add_argument("--check", action="store_true", help="fail unless docs/design/scale.md has these tables")
    return parser.parse_args(arguments)


def add_fields(group, kind):
    """A flag for each field, with its meaning."""
    for field in dataclasses.fields(kind):
        default = None if field.default is dataclasses.MISSING else field.default
        help = field.metadata["help"] + ("" if default is None else f" ({default:g})")
        if field.name == "store":
            group.add_argument("--store", choices=["object", "none"], default="object", help=field.metadata["help"])
        else:
            convert = int if isinstance(default, int) else float
            group.add_argument(f"--{field.name.replace('_', '-')}", type=convert, default=None, help=help)


def given(options, kind):
    """The fields that flags set."""
    names = [field.name for field in dataclasses.fields(kind) if field.name != "store"]
    return {name: value for name in names if (value := getattr(options, name)) is not None}


#: What is counted.
WHOLE = ("pairs", "seeds", "parts", "shard_rows", "machines", "cores", "connections", "piece", "part_piece")
#: What may be 0.
MAY_BE_ZERO = ("latency", "losses", "replace", "random", "own_seeds", "all_manifests", "headers", "sync")


def require_sense(options):
    """Fails on numbers that describe no run and no cluster."""
    names = [field.name for kind in (Cluster, Rates) for field in dataclasses.fields(kind) if field.name != "store"]
    for name in ["pairs", "seeds", "parts", "shard_rows", *names]:
        value, lowest = getattr(options, name), 1 if name in WHOLE else 0
        if value is None or lowest <= value < float("inf") and (value or name in MAY_BE_ZERO):
            continue
        expected = f"{lowest} or more" if lowest or name in MAY_BE_ZERO else "a number above 0"
        fail(f"--{name.replace('_', '-')}: expected {expected}, found {value:g}")


def record_of(path):
    """What was measured."""
    try:
        found = results.read(path)
        return found, Rates(**{field.name: float(found["rates"][field.name]) for field in dataclasses.fields(Rates)})
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        fail(f"{path}: expected rates that `tools/plan_scale.py measure` wrote, found {what}")


def fail(message):
    sys.exit(f"tools/plan_scale.py: {message}")


def count(number):
    """A number for people."""
    exponent = f"{number:.0e}".partition("e+")
    if number >= 1e6 and float(exponent[0]) == number / 10 ** int(exponent[2]) and exponent[0] == "1":
        return f"10^{int(exponent[2])}"
    return f"{round(number):,}"


def scaled(number, unit):
    """With a prefix and three digits."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def span(seconds):
    """A time for people."""
    if seconds >= 5400:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 60:.3g} min" if seconds >= 99 else f"{seconds:.2g} s"


def table(head, rows):
    """Markdown; the first column is of words."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


RESOURCES = {
    "cores": "cores",
    "network": "network",
    "disk": "disk",
    "store": "store's bytes",
    "requests": "store's requests",
    "driver": "driver",
    "opening": "opening",
    "part": "a part alone",
    "merge": "merge",
}


#: Pieces as they were, and parts that read all seeds.
SHORT = {"own_seeds": 0, "piece": 8 << 20, "part_piece": 8 << 20, "connections": 4}

#: Name, changes of the cluster's rules, pairs a shard.
OTHER_RULES = [
    (
        "before: all manifests when a part opens, every header when parts are merged, pieces of 8 MiB",
        {"all_manifests": 1, "headers": 1, **SHORT},
        None,
    ),
    ("one manifest when a part opens", {"headers": 1, **SHORT}, None),
    ("a list of objects when parts are merged", SHORT, None),
    ("pieces of 16 MiB down and 32 up: **the engine**, by `synth --part`", {"own_seeds": 0}, None),
    ("a part reads its own seeds alone: **the engine**, from a recipe in the store", {}, None),
    ("shards would be of 1 GiB", {}, 65_536),
]


def plan(options, rates):
    """One run, by resource."""
    cluster = Cluster(store=options.store == "object", **given(options, Cluster))
    pairs = int(options.pairs or 1e9)
    seeds = int(options.seeds or max(1, pairs // 1000))
    work = Work.of(options.output, pairs, seeds, options.shard_rows, options.parts, cluster)
    try:
        found = simulate(work, cluster, rates)
    except RuntimeError as error:
        fail(error)
    if options.json:
        print(json.dumps({"work": dataclasses.asdict(work), "cluster": dataclasses.asdict(cluster)} | found, indent=1))
        return
    print(f"{count(pairs)} pairs as {WORDS.get(work.output, work.output)}, from {count(work.seeds)} seeds, {cluster.machines} "
          f"x {cluster.cores} cores: {span(found['seconds'])}")  # fmt: skip
    print(f"{work.shards:,} shards of {work.shard_rows:,} pairs in {work.parts:,} parts; {scaled(work.bytes, 'B')} written, "
          f"{scaled(found['read'], 'B')} of seeds read, {found['requests']:,} requests; {found['failures']} machines lost, "
          f"{found['lost_shards']:,} shards made twice")  # fmt: skip
    for name, seconds in sorted(found["bounds"].items(), key=lambda item: -item[1]):
        print(f"  {RESOURCES[name]:16} {span(seconds):>9} at least")
    held = RESOURCES[found["bound_by"]]
    print(f"  {'whole run':16} {span(found['seconds']):>9}, of which {span(found['merging'])} merging; held up by: {held}")
    for sentence in work.limits():
        print(f"note: {sentence}")


def outcome(work, cluster, rates):
    """A run's time and what holds it up."""
    try:
        found = simulate(work, cluster, rates)
    except RuntimeError:
        return "no end: machines are lost sooner"
    return f"{span(found['seconds'])}, {RESOURCES[found['bound_by']]}"


def tables(record, rates):
    """The tables of the page."""
    measured = record["measured"]
    rows = [(field.metadata["help"], field.metadata["show"](getattr(rates, field.name))) for field in dataclasses.fields(Rates)]
    text = f"Rates of one core, {measured['device']}, {measured['date']}, `tools/plan_scale.py measure`:\n\n"
    text += table(["what", "measured"], rows)

    cluster = Cluster()
    text += f"\nThe cluster, assumed: {cluster.words()}.\n\n"
    text += f"10^9 pairs from 10^6 seeds, d = 4096, {cluster.machines} machines:\n\n"
    names = list(RESOURCES)
    names = [name for name in names if name not in ("disk", "opening")]
    rows = []
    for output in OUTPUTS:
        work = Work.of(output, 10**9, 10**6, None, None, cluster)
        found = simulate(work, cluster, rates)
        of = [span(found["bounds"][name]) if found["bounds"][name] else "-" for name in names]
        rows.append([WORDS.get(output, output), scaled(work.bytes, "B") if work.bytes else "-", f"{work.shards:,}",
                     scaled(found["read"], "B"), f"{found['requests']:,}", *of, span(found["seconds"])])  # fmt: skip
    text += table(["output", "written", "shards", "seeds read", "requests", *(RESOURCES[name] for name in names), "whole run"], rows)

    text += "\nThe same by machines, whole run and what holds it up:\n\n"
    rows = []
    for output in OUTPUTS:
        row = [WORDS.get(output, output)]
        for machines, store in ((1, False), (1, True), (10, True), (100, True), (1000, True)):
            other = dataclasses.replace(cluster, machines=machines, store=store)
            row.append(outcome(Work.of(output, 10**9, 10**6, None, None, other), other, rates))
        rows.append(row)
    text += table(["output", "1 machine, its own disk", "1 machine", "10", "100", "1,000"], rows)

    text += f"\nBy parts, on {cluster.machines} machines:\n\n"
    rows = []
    for output in OUTPUTS:
        row = [WORDS.get(output, output)]
        for parts in (100, 200, 400, 800, 1600):
            work = Work.of(output, 10**9, 10**6, None, parts, cluster)
            row.append(outcome(work, cluster, rates) if work.parts == parts else "-")
        rows.append(row)
    text += table(["output", "100 parts", "200", "400", "800", "1,600"], rows)

    text += f"\nWhere it breaks first: by pairs, from a thousandth as many seeds, on {cluster.machines} machines:\n\n"
    rows = []
    for output in OUTPUTS:
        for exponent in range(6, 11):
            work = Work.of(output, 10**exponent, 10 ** (exponent - 3), None, None, cluster)
            found = simulate(work, cluster, rates)
            size = found["manifest"]
            rows.append([f"{count(work.pairs)}, {output}", scaled(work.bytes, "B") if work.bytes else "-", f"{work.shards:,}",
                         scaled(size, "B") if size else "-", scaled(found["read"], "B"), f"{found['requests']:,}",
                         span(found["merging"]) if found["merging"] else "-", span(found["seconds"]), RESOURCES[found["bound_by"]],
                         "; ".join(work.limits()) or "-"])  # fmt: skip
    head = ["pairs", "written", "shards", "manifest", "seeds read", "requests", "merge", "whole run", "held up by", "breaks"]
    text += table(head, rows)

    text += f"\nWhat other rules did or would do, 10^9 embeddings on {cluster.machines} machines:\n\n"
    rows = []
    for what, changes, shard_rows in OTHER_RULES:
        other = dataclasses.replace(cluster, **changes)
        found = simulate(work := Work.of("embeddings", 10**9, 10**6, shard_rows, None, other), other, rates)
        rows.append([what, f"{work.shards:,}", scaled(found["read"], "B"), f"{found['requests']:,}", span(found["merging"]),
                     span(found["seconds"]), RESOURCES[found["bound_by"]]])  # fmt: skip
    text += table(["rule", "shards", "seeds read", "requests", "merge", "whole run", "held up by"], rows)

    if validated := record.get("validated"):
        text += f"\nThe model beside the same runs on this machine, {validated['date']}, {validated['processes']} processes; "
        text += f"others took {validated['others']:.0%} of the cores meanwhile:\n\n"
        rows = []
        for run in validated["runs"]:
            times = f"{run['measured']:.1f} to {run['slowest']:.1f} s", f"{run['simulated']:.1f} s"
            rows.append([run["what"], f"{run['pairs']:,}", run["parts"], *times, f"{run['simulated'] / run['measured']:.2f}"])
        text += table(["what", "pairs", "parts", "measured, fastest to slowest", "simulated", "of the fastest"], rows)
    if memory := record.get("memory"):
        text += f"\n{count(memory['pairs'])} pairs as latents on this machine, {memory['date']}, {memory['threads']} threads, from "
        text += f"{memory['seeds']:,} seeds at d = {memory['dim']}: {memory['seconds']:.0f} s, {scaled(memory['bytes'], 'B')}. "
        text += f"Resident memory on the way, at most {memory['peak_mib']:.0f} MiB:\n\n"
        shown = memory["curve"]
        text += table(["pairs made", *(scaled(row["pairs"], "").strip() for row in shown)],
                      [["resident, MiB", *(f"{row['rss_mib']:.0f}" for row in shown)],
                       ["without mapped files, MiB", *(f"{row['own_mib']:.0f}" for row in shown)]])  # fmt: skip
        resumed = memory["resumed"]
        text += f"\nKilled (SIGKILL) {resumed['killed_after']:.0f} s after its start, the same command kept {resumed['kept']:,} "
        text += "pairs and made the others; the manifest, with the checksum of every tensor, is that of the run that was left "
        text += f"alone, and `verify` read all {memory['shards']} shards.\n"
    return text


def page(record, rates):
    """What docs/design/scale.md should be."""
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        fail(f"{PAGE}: expected the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + tables(record, rates) + end + after


def measured(options, name):
    """Runs a measurement in a folder that is removed afterwards."""
    if options.lensmith is None:
        fail(f"{name} needs --lensmith PATH, the program: cargo build --release makes target/release/lensmith")
    if not os.access(options.lensmith, os.X_OK):
        fail(f"{options.lensmith}: expected a program that can be run")
    lab = scale_measure.Lab(options.lensmith.absolute(), options.folder, options.quick)
    try:
        if name == "measure":
            found = lab.rates()
        elif name == "validate":
            found = lab.validate(record_of(options.rates)[1])
        else:
            found = lab.memory(int(options.pairs or (1e6 if options.quick else 1e8)), options.csv)
    except scale_measure.Failed as error:
        fail(error)
    finally:
        shutil.rmtree(lab.folder, ignore_errors=True)
    print(json.dumps(found, indent=1))
    if not options.quick:
        results.write(options.rates, (results.read(options.rates) if options.rates.exists() else {}) | found)


def main():
    options = parsed()
    require_sense(options)
    if options.command != "plan":
        return measured(options, options.command)
    record, rates = record_of(options.rates)
    if options.write or options.check:
        wanted = page(record, rates)
        if options.check and PAGE.read_text() != wanted:
            fail(f"{PAGE} is not what --write makes of {options.rates}")
        if options.write:
            PAGE.write_text(wanted)
        return None
    return plan(options, dataclasses.replace(rates, **given(options, Rates)))


if __name__ == "__main__":
    sys.exit(main())
