"""tools/plan_scale.py: what its model must hold whatever the rates are, its measurements in small, and its page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM, ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "tools"))
from scale_model import Cluster, Part, Rates, Work, simulate  # noqa: E402

TOOL = ROOT / "tools" / "plan_scale.py"
RECORD = json.loads((ROOT / "benches" / "scale.json").read_text())
RATES = Rates(**RECORD["rates"])

clusters = st.builds(
    Cluster,
    machines=st.integers(1, 6),
    cores=st.integers(1, 4),
    nic=st.floats(1e7, 1e10),
    store=st.booleans(),
    store_rate=st.floats(1e7, 1e12),
    connection=st.floats(1e6, 1e9),
    latency=st.floats(0, 0.2),
    puts=st.floats(10, 1e5),
    gets=st.floats(10, 1e5),
    losses=st.just(0.0),
)
rates = st.builds(
    Rates,
    latents=st.floats(1e4, 1e7),
    embeddings=st.floats(1e3, 1e6),
    decoded=st.floats(1e3, 1e6),
    disk=st.floats(1e7, 1e10),
    sync=st.floats(0, 0.05),
    checksum=st.floats(1e8, 1e10),
    start=st.floats(0.01, 1),
    listed_latents=st.just(419.0),
    listed_embeddings=st.just(233.0),
    open_manifest=st.floats(1e-6, 1e-3),
    merge_shard=st.floats(1e-5, 1e-2),
    dispatch=st.floats(1e-4, 0.1),
)


@st.composite
def runs(draw: Any) -> tuple[Work, Cluster, Rates]:
    cluster = draw(clusters)
    work = Work.of(
        draw(st.sampled_from(["latents", "embeddings", "recipe"])),
        draw(st.integers(1, 10**7)),
        draw(st.integers(1, 10**4)),
        draw(st.integers(10**4, 10**6)),
        draw(st.integers(1, 60)),
        cluster,
    )
    return work, cluster, draw(rates)


@settings(max_examples=150, deadline=None)
@given(runs())
def test_every_pair_is_made_once_and_no_resource_gives_more_than_it_has(run):
    work, cluster, rates = run
    found = simulate(work, cluster, rates)
    assert found["pairs"] == work.pairs
    for name, seconds in found["bounds"].items():
        assert found["seconds"] >= seconds * (1 - 1e-9), name
    assert found["core_seconds"] > 0 and found["seconds"] < float("inf")


# Parts differ by a shard, and what comes first comes first: another order may be better or worse by less than a part.


@settings(max_examples=150, deadline=None, derandomize=True)
@given(runs(), st.integers(1, 8))
def test_more_machines_never_take_longer(run, more):
    work, cluster, rates = run
    found, larger = (simulate(work, c, rates) for c in (cluster, dataclasses.replace(cluster, machines=cluster.machines + more)))
    assert larger["seconds"] <= found["seconds"] + found["bounds"]["part"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(runs(), st.floats(0.1, 20), st.integers(0, 2**32))
def test_lost_machines_only_add(run, losses, seed):
    work, cluster, rates = run
    found = simulate(work, cluster, rates)
    # In the time of the run several machines are lost.
    lossy = dataclasses.replace(cluster, losses=losses * 3600 / found["seconds"] / cluster.machines, replace=1.0, random=seed)
    try:
        lost = simulate(work, lossy, rates)
    except RuntimeError as error:
        assert "does not end" in str(error)
        return
    assert lost["pairs"] == work.pairs
    assert lost["read"] >= found["read"] and lost["core_seconds"] >= found["core_seconds"] * (1 - 1e-9)
    assert lost["seconds"] >= found["seconds"] - found["bounds"]["part"]
    assert lost["lost_shards"] == 0 or lost["failures"] > 0


@settings(deadline=None)
@given(runs(), st.floats(1, 100))
def test_a_run_is_the_same_every_time(run, losses):
    work, cluster, rates = run
    lossy = dataclasses.replace(cluster, losses=losses, replace=5.0)
    with contextlib.suppress(RuntimeError):
        assert simulate(work, lossy, rates) == simulate(work, lossy, rates)


@given(runs())
def test_parts_are_cut_as_the_engine_cuts_them(run):
    work, _, _ = run
    parts = [Part(work, index) for index in range(work.parts)]
    assert sum(part.shards(slice(None)) for part in parts) == work.blocks
    assert sum(pairs for part in parts for _, pairs in part.groups) == work.pairs
    # src/synth/parts.rs, Part::of
    for index, part in enumerate(parts):
        assert part.shards(slice(None)) == (index + 1) * work.blocks // work.parts - index * work.blocks // work.parts


def test_shards_are_as_large_as_the_engine_makes_them(tmp_path, vae, small, program):
    small.save(tmp_path / "seeds.safetensors")
    vae.save(tmp_path / "vae.safetensors")
    for output in ("latents", "embeddings"):
        line = [tmp_path / "seeds.safetensors", "--vae", tmp_path / "vae.safetensors", "--dtype", "f16", "--fold", 4]
        program("synth", *line, "--output", output, "--out", tmp_path / output)
        made = json.loads((tmp_path / output / "manifest.json").read_text())
        work = Work.of(output, made["pairs"], 60, None, None, Cluster(), dim=32)
        assert (work.shard_rows, work.shards) == (made["shard_rows"], len(made["shards"]))
        size = made["shards"][0]["bytes"]
        assert work.bytes <= size < work.bytes + 8192


def test_a_run_beyond_the_rules_says_so(program, tmp_path, vae, small):
    assert not Work.of("embeddings", 10**9, 10**6, None, None, Cluster()).limits()
    longer = Work.of("embeddings", 10**10, 10**7, None, None, Cluster())
    assert not longer.limits() and longer.shard_rows == 131_072
    (said,) = Work.of("embeddings", 10**10, 10**7, 16_384, None, Cluster()).limits()
    assert "--shard-rows 100,000 or more" in said
    # So does the engine.
    small.save(tmp_path / "seeds.safetensors")
    vae.save(tmp_path / "vae.safetensors")
    line = ["synth", tmp_path / "seeds.safetensors", "--vae", tmp_path / "vae.safetensors", "--fold", 2000, "--shard-rows", 1]
    done = program(*line, "--out", tmp_path / "out", code_expected=None)
    assert done.returncode and "100000 shards" in done.stderr, done.stderr


def tool(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment())
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


def test_the_page_shows_what_the_tool_prints():
    tool("--check")


def test_a_page_that_shows_something_else_is_named(tmp_path):
    other = tmp_path / "scale.json"
    other.write_text(json.dumps(RECORD | {"rates": RECORD["rates"] | {"merge_shard": 1.0}}))
    assert "scale.md is not what --write makes" in tool("--check", "--rates", other, code=1)
    other.write_text("{}")
    assert "expected rates that `tools/plan_scale.py measure` wrote, found no 'rates'" in tool("--rates", other, code=1)


def test_a_plan_is_told_as_json_too():
    found = json.loads(tool("--pairs", 1e8, "--output", "latents", "--machines", 4, "--json"))
    assert (found["pairs"], found["work"]["seeds"], found["cluster"]["machines"]) == (10**8, 10**5, 4)
    assert "latents" in tool("--pairs", 1e8, "--output", "latents", "--machines", 4)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (["--machines", 0], "--machines: expected 1 or more, found 0"),
        (["--nic", 0], "--nic: expected a number above 0, found 0"),
        (["--losses", "nan"], "--losses: expected 0 or more, found nan"),
        (["--pairs", 0.5], "--pairs: expected 1 or more, found 0.5"),
        (["--losses", 1e6], "the run does not end"),
    ],
)
def test_plans_of_nothing_are_refused(flag, words):
    assert words in tool(*flag, code=1)


def test_the_record_is_of_real_runs_that_the_model_meets():
    for run in RECORD["validated"]["runs"]:
        assert 0.5 < run["simulated"] / run["measured"] < 2, run
    memory = RECORD["memory"]
    assert memory["pairs"] >= 10**8
    middle, end = (memory["curve"][i]["rss_mib"] for i in (1, -1))
    # Flat from a tenth of the run to its end.
    assert end < 1.25 * middle and memory["peak_mib"] < 256


@pytest.mark.parametrize("command", ["measure", "validate", "memory"])
def test_what_is_measured_can_be_measured_again(command, tmp_path):
    if command == "measure":
        pytest.importorskip("ray")
    (tmp_path / "program.py").write_text(PROGRAM)
    program = tmp_path / "lensmith"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {tmp_path / "program.py"} "$@"\n')
    program.chmod(0o755)
    record = tmp_path / "scale.json"
    shutil.copy(ROOT / "benches" / "scale.json", record)
    csv = tmp_path / "memory.csv"
    more = ["--csv", csv, "--pairs", 2e6] if command == "memory" else []
    found = json.loads(tool(command, "--quick", "--lensmith", program, "--folder", tmp_path / "lab", "--rates", record, *more))
    if command == "measure":
        assert found["rates"].keys() == RECORD["rates"].keys() and all(rate > 0 for rate in found["rates"].values())
    elif command == "validate":
        assert [run["parts"] for run in found["validated"]["runs"]] == [4, 40, 4, 18]
    else:
        assert 0 < found["memory"]["resumed"]["kept"] < found["memory"]["pairs"] == 2 * 10**6
        assert csv.read_text().startswith("seconds,pairs,rss_mib,own_mib,peak_mib\n")
    # Nothing is recorded, and nothing stays behind.
    assert json.loads(record.read_text()) == RECORD
    assert not list((tmp_path / "lab").iterdir())


def test_a_program_that_is_missing_or_fails_is_named(tmp_path):
    assert "measure needs --lensmith PATH" in tool("measure", code=1)
    assert "expected a program that can be run" in tool("measure", "--lensmith", tmp_path / "none", code=1)
    assert "lensmith-that-fails train-vae failed" in tool("memory", "--quick", "--lensmith", failing(tmp_path), code=1)


def failing(folder: Path) -> Path:
    program = folder / "lensmith-that-fails"
    program.write_text("#!/bin/sh\necho no >&2\nexit 3\n")
    program.chmod(0o755)
    return program
