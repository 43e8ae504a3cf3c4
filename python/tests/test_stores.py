"""Files in an object store, by URL: the bytes of files on disk, nothing half there, whatever the line does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
from conftest import PROGRAM, arrays_of

import lensmith as lm

pytest.importorskip("moto")
pytest.importorskip("boto3")

#: Seeds and values of the small run, which makes six shards of 100 pairs.
SEEDS, DIM, FOLD, ROWS = 100, 256, 6, 100
SHARDS = [f"pairs-{i:05}.safetensors" for i in range(6)]


@pytest.fixture(scope="module")
def store() -> Iterator[s3_server.Store]:
    with s3_server.store() as made:
        yield made


@pytest.fixture(scope="module")
def lab(tmp_path_factory, engine, store) -> Path:
    """Seeds and a VAE on disk and in the store, and what a run on disk makes of them."""
    lab: Path = tmp_path_factory.mktemp("stores")
    seeds = lm.PairSet(*arrays_of(SEEDS, DIM), engine=engine)
    seeds.save(lab / "seeds.safetensors")
    lm.Vae.fit(seeds, hidden=16, latent=16, epochs=1, engine=engine).save(lab / "vae.safetensors")
    for name in ("seeds.safetensors", "vae.safetensors"):
        store.put(f"in/{name}", (lab / name).read_bytes())
    done = run(store, "synth", lab / "seeds.safetensors", *OPTIONS, "--vae", lab / "vae.safetensors", "--out", lab / "whole")
    assert done.returncode == 0, done.stderr
    return lab


OPTIONS = ("--fold", FOLD, "--shard-rows", ROWS)


def start(store: s3_server.Store, *arguments: object, **more: str) -> subprocess.Popen[str]:
    """Starts the program."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--device", "cpu", "--quiet"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=store.environment() | more, **pipes)


def run(store: s3_server.Store, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    process = start(store, *arguments, **more)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def good(store: s3_server.Store, *arguments: object, **more: str) -> str:
    """What it prints when it ends well."""
    done = run(store, *arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def synth(out: str, *more: object) -> tuple[object, ...]:
    """The command line of the run with inputs and output in the store."""
    where = ("s3://bucket/in/seeds.safetensors", "--vae", "s3://bucket/in/vae.safetensors", "--out", f"s3://bucket/{out}")
    return ("synth", *where, *OPTIONS, *more)


def outputs(lab: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (lab / "whole").iterdir() if not path.name.startswith(".")}


def assert_whole(store: s3_server.Store, lab: Path, out: str) -> None:
    """The prefix holds what the folder on disk does, but for the places of the inputs."""
    expected, found = outputs(lab), store.objects(out)
    assert sorted(found) == sorted(expected)
    for name in set(expected) - {"recipe.json"}:
        assert found[name] == expected[name], name
    recipes = [json.loads(folder["recipe.json"]) for folder in (expected, found)]
    assert recipes[1]["seeds"].pop("sources") == ["s3://bucket/in/seeds.safetensors"]
    assert recipes[1]["vae"].pop("path") == "s3://bucket/in/vae.safetensors"
    assert len(recipes[1]["seeds"].pop("versions")) == 1
    recipes[0]["seeds"].pop("sources"), recipes[0]["vae"].pop("path")
    assert recipes[0] == recipes[1]
    assert store.unfinished() == []


def assert_nothing_half(store: s3_server.Store, lab: Path, out: str) -> None:
    """Every shard that is there is whole, and no manifest says more than is there."""
    expected, found = outputs(lab), store.objects(out)
    for name in set(found) & set(SHARDS):
        assert found[name] == expected[name], name
    if "manifest.json" in found:
        manifest = json.loads(found["manifest.json"])
        assert all(shard["file"] in found for shard in manifest["shards"])
        assert not manifest["complete"] or sorted(found) == sorted(expected)


def test_a_run_in_a_store_is_a_run_on_disk(store, lab):
    said = json.loads(good(store, *synth("plain"), "--json"))
    assert (said["pairs"], said["shards"], said["resumed"]) == (SEEDS * FOLD, 6, 0)
    assert_whole(store, lab, "plain")
    assert json.loads(good(store, *synth("plain"), "--json"))["resumed"] == SEEDS * FOLD
    checked = json.loads(good(store, "verify", "s3://bucket/plain", "--json"))
    assert (checked["shards"], checked["pairs"], checked["missing"]) == (6, SEEDS * FOLD, None)
    assert "complete" in good(store, "inspect", "s3://bucket/plain/")
    shard = json.loads(good(store, "inspect", "s3://bucket/plain/pairs-00003.safetensors", "--json"))
    assert shard == json.loads(good(store, "inspect", lab / "whole" / "pairs-00003.safetensors", "--json")) | {
        "path": shard["path"]
    }


def test_other_settings_are_refused_and_replaced(store, lab):
    good(store, *synth("other"))
    other = (*synth("other")[:-4], "--fold", 6, "--shard-rows", 150)
    done = run(store, *other)
    assert done.returncode == 1 and "made with other settings" in done.stderr, done.stderr
    assert_whole(store, lab, "other")
    good(store, *other, "--overwrite")
    assert sorted(store.objects("other"))[-1] == "recipe.json" and len(store.objects("other")) == 6
    good(store, *synth("other"), "--overwrite")
    assert_whole(store, lab, "other")


def test_parts_are_joined(store, lab):
    for part in ("2/3", "0/3"):
        good(store, *synth("parts"), "--part", part)
    done = run(store, "merge-manifests", "s3://bucket/parts")
    assert done.returncode == 1 and "of part 1/3 (no complete manifest.part-1-of-3.json)" in done.stderr, done.stderr
    good(store, *synth("parts"), "--part", "1/3")
    assert json.loads(good(store, "merge-manifests", "s3://bucket/parts", "--json"))["parts"] == 3
    for index in range(3):
        store.client.delete_object(Bucket="bucket", Key=f"parts/manifest.part-{index}-of-3.json")
    assert_whole(store, lab, "parts")
    store.put("parts/pairs-00002.safetensors", b"short")
    done = run(store, "merge-manifests", "s3://bucket/parts")
    assert done.returncode == 1 and "pairs-00002.safetensors: length in the manifest" in done.stderr, done.stderr


def test_whatever_reads_files_reads_objects(store, lab, tmp_path):
    good(store, *synth("z"), "--output", "latents")
    good(store, "materialize", "s3://bucket/z", "--shard-rows", ROWS, "--out", "s3://bucket/embeddings")
    assert {k: v for k, v in store.objects("embeddings").items() if k in SHARDS} == {
        k: v for k, v in outputs(lab).items() if k in SHARDS
    }
    trained: list[bytes] = []
    for source in ("s3://bucket/embeddings/pairs-*.safetensors", "s3://bucket/embeddings", "s3://bucket/embeddings/"):
        model = f"s3://bucket/models/{len(trained)}.safetensors"
        good(store, "train-reward", source, "--epochs", 1, "--reward-hidden", 16, "--out", model)
        trained.append(store.get(f"models/{len(trained)}.safetensors"))
    # Shards by a pattern are no run, of which the first pairs are known to be originals.
    assert trained[0] != trained[1] == trained[2]
    (tmp_path / "model.safetensors").write_bytes(trained[1])
    scored = json.loads(good(store, "eval", "s3://bucket/embeddings", "--model", model, "--json"))
    on_disk = json.loads(good(store, "eval", lab / "whole", "--model", tmp_path / "model.safetensors", "--json"))
    assert scored["pairs"] == on_disk["pairs"] and 0 < scored["pairs"]["accuracy"] < 1
    table = "s3://bucket/table.parquet"
    good(store, "export", "s3://bucket/embeddings", "--out", table)
    good(store, "import", table, "--dtype", "bf16", "--out", "s3://bucket/again")
    good(store, "export", "s3://bucket/again", "--out", "s3://bucket/table-again.parquet")
    assert store.get("table-again.parquet") == store.get("table.parquet")


@pytest.mark.parametrize("fault", s3_server.FAULTS)
def test_a_line_that_fails_now_and_then_changes_nothing(store, lab, fault):
    out = f"faulty-{fault}"
    every = 7 if fault == "slow" else 3
    failed: list[str] = []

    def plan(number: int, method: str, path: str) -> str | None:
        if number % every != 1 or (fault == "truncated" and method != "GET"):
            return None
        failed.append(f"{method} {path}")
        return fault

    with store.failing(plan):
        good(store, *synth(out))
    assert len(failed) >= 3
    assert_whole(store, lab, out)


def test_killed_at_any_request_it_goes_on_to_the_same_bytes(store, lab):
    with store.failing(lambda *_: None):
        good(store, *synth("count"))
        requests = len(store.requests)
    assert requests > 20
    resumed = []
    # Before a request is sent on, and after it.
    for at in range(0, requests, 2):
        out, fault = f"killed-{at}", ("reset", "lost")[at // 2 % 2]
        process = start(store, *synth(out))
        end = threading.Event()

        def plan(number: int, method: str, path: str, at=at, fault=fault, process=process, end=end) -> str | None:
            if number != at:
                return None
            process.send_signal(signal.SIGKILL)
            end.set()
            return fault

        with store.failing(plan):
            process.communicate(timeout=120)
        assert end.is_set() == (process.returncode == -signal.SIGKILL)
        assert_nothing_half(store, lab, out)
        resumed.append(json.loads(good(store, *synth(out), "--json"))["resumed"])
        assert_whole(store, lab, out)
    assert min(resumed) == 0 and max(resumed) > SEEDS * FOLD // 2, resumed


def test_two_processes_that_make_the_same(store, lab):
    """No lock keeps them apart: one of them finds that the other wrote its manifest, or comes after it."""
    with store.failing(lambda number, method, path: "slow" if method == "PUT" and number % 4 == 0 else None):
        both = [start(store, *synth("twice")) for _ in range(2)]
        ended = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 1]), ended
    assert all("another lensmith process is writing here" in said for said in ended if said), ended
    assert_whole(store, lab, "twice")


def test_without_rights_nothing_is_lost(store, lab):
    good(store, *synth("kept", "--part", "0/2"))
    before = store.objects("kept")
    with store.failing(lambda number, method, path: "refused" if method in ("PUT", "POST") else None):
        done = run(store, *synth("kept", "--part", "1/2"))
        assert done.returncode == 1
        assert "s3://bucket/kept/manifest.part-1-of-2.json" in done.stderr, done.stderr
        assert "the credentials in the environment do not allow it" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert store.objects("kept") == before
    with store.failing(lambda number, method, path: "refused"):
        done = run(store, "inspect", "s3://bucket/kept/pairs-00000.safetensors")
        assert done.returncode == 1 and "do not allow it" in done.stderr, done.stderr


def test_what_is_not_there_is_named(store, lab):
    for url, said in [
        ("s3://bucket/none.safetensors", "s3://bucket/none.safetensors"),
        ("s3://nobody/seeds.safetensors", "s3://nobody/seeds.safetensors"),
        ("s3://bucket/none-*.safetensors", "files that match this pattern"),
        ("s3:///seeds.safetensors", "it names no bucket"),
        ("s3://bucket/none/", "*.safetensors files in this folder"),
    ]:
        done = run(store, "synth", url, "--vae", "s3://bucket/in/vae.safetensors", "--out", "s3://bucket/nothing")
        assert done.returncode in (1, 2) and said in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert store.objects("nothing") == {}


def test_seeds_that_are_replaced_meanwhile_are_an_error(store, lab):
    seeds = (lab / "seeds.safetensors").read_bytes()
    store.put("changing/seeds.safetensors", seeds)
    command = [str(word).replace("bucket/in/seeds", "bucket/changing/seeds") for word in synth("changed")]
    seen = 0

    def plan(number: int, method: str, path: str) -> str | None:
        nonlocal seen
        if method == "GET" and path.startswith("/bucket/changing/"):
            seen += 1
            if seen == 2:
                store.put("changing/seeds.safetensors", seeds[:-1] + bytes([seeds[-1] ^ 1]))
        return None

    with store.failing(plan):
        done = run(store, *command)
    assert done.returncode == 1 and "changing/seeds.safetensors" in done.stderr, done.stderr
    assert "another object took its place" in done.stderr, done.stderr
    found = store.objects("changed")
    assert not [name for name in found if name in SHARDS]
    assert not json.loads(found.get("manifest.json", b'{"complete": false}'))["complete"]


def test_large_shards_go_up_in_parts_and_memory_stays_small(store, lab, engine, tmp_path):
    """160 MB of seeds are read in ranges, and a shard as long is uploaded in parts, some of which fail."""
    dim, pairs = 4096, 5000
    chosen, rejected = arrays_of(pairs, dim)
    lm.PairSet(chosen, rejected, engine=engine).save(tmp_path / "seeds.safetensors")
    del chosen, rejected
    store.put("large/seeds.safetensors", (tmp_path / "seeds.safetensors").read_bytes())
    seeds = lm.PairSet.open(tmp_path / "seeds.safetensors", engine=engine)
    lm.Vae.fit(seeds, hidden=16, latent=16, epochs=1, engine=engine).save(tmp_path / "vae.safetensors")
    options = ("--vae", tmp_path / "vae.safetensors", "--fold", 2, "--shard-rows", 2 * pairs, "--threads", 1)
    good(store, "synth", tmp_path / "seeds.safetensors", *options, "--out", tmp_path / "disk")
    parts: list[str] = []

    def plan(number: int, method: str, path: str) -> str | None:
        if "partNumber=" in path:
            parts.append(path)
            return "busy" if len(parts) % 3 == 1 else None
        return None

    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )

    def peak(source: object, out: object) -> int:
        """Most megabytes of memory that a run takes."""
        command = [sys.executable, "-c", PROGRAM, "synth", str(source), *map(str, options), "--out", str(out)]
        command += ["--device", "cpu", "--quiet", "--json", "--io", "read"]
        done = subprocess.run(
            [sys.executable, "-c", code, *command], env=store.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1]) // 1024

    with store.failing(plan):
        remote = peak("s3://bucket/large/seeds.safetensors", "s3://bucket/large/out")
    assert len(parts) > 5
    assert store.unfinished() == []
    assert store.get("large/out/pairs-00000.safetensors") == (tmp_path / "disk" / "pairs-00000.safetensors").read_bytes()
    local = peak(tmp_path / "seeds.safetensors", tmp_path / "again")
    # Three pieces of 32 MiB up and three of 16 down, with what the connections hold.
    assert remote < local + 220, (remote, local)


def test_python_reads_and_writes_urls(store, lab):
    code = """
import sys
import numpy as np
import lensmith as lm
engine = lm.Engine("cpu", threads=1)
seeds = lm.PairSet.open("s3://bucket/in/seeds.safetensors", engine=engine)
vae = lm.Vae.load("s3://bucket/in/vae.safetensors")
pairs = lm.synthesize(vae, seeds, fold=6, engine=engine)
said = pairs.write("s3://bucket/python", shard_rows=100)
assert said["pairs"] == 600 and pairs.write("s3://bucket/python", shard_rows=100)["resumed"] == 600
again = lm.PairSet.open("s3://bucket/python", engine=engine)
assert len(again) == 600
assert np.array_equal(lm.SyntheticPairs.open("s3://bucket/python", engine=engine)[:7].chosen.numpy(), pairs[:7].chosen.numpy())
memory = lm.PairSet(*[np.asarray(side.numpy()) for side in (seeds.chosen, seeds.rejected)], engine=engine)
lm.synthesize(vae, memory, fold=6, engine=engine).write("s3://bucket/memory", shard_rows=100)
model = lm.RewardModel.fit(again, hidden=16, epochs=1, engine=engine)
model.save("s3://bucket/model.safetensors")
assert np.array_equal(lm.RewardModel.load("s3://bucket/model.safetensors").score(memory.chosen), model.score(memory.chosen))
try:
    lm.PairSet.open("s3://bucket/nothing.safetensors", engine=engine)
except lm.LensmithError as error:
    assert error.kind == "Io" and "s3://bucket/nothing.safetensors" in str(error), error
else:
    raise AssertionError("nothing is there")
"""
    done = subprocess.run([sys.executable, "-c", code], env=store.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_whole_shards = {name: content for name, content in outputs(lab).items() if name in SHARDS}
    for out in ("python", "memory"):
        found = store.objects(out)
        assert {name: found[name] for name in SHARDS} == assert_whole_shards, out
        assert {"inputs/vae.safetensors"} <= set(found), out


def test_parts_of_a_recipe_read_their_own_seeds(store, lab):
    good(store, *synth("own"), "--output", "recipe")

    def read(part: str) -> int:
        """Requests for ranges of the seeds."""
        with store.failing(lambda *_: None):
            done = good(store, "materialize", "s3://bucket/own", "--shard-rows", 100, "--part", part, "--out", "s3://bucket/own-out")
            assert done
            return sum(request == "GET /bucket/in/seeds.safetensors" for request in store.requests)

    # The header, and the rows of both sides.
    assert read("0/6") == 3
    store.put("in/seeds.safetensors", (lab / "seeds.safetensors").read_bytes())
    # Amazon's tags follow from the bytes.
    assert read("1/6") == 3
    recipe = json.loads(store.get("own/recipe.json"))
    recipe["seeds"]["versions"] = ["another"]
    store.put("own/recipe.json", json.dumps(recipe).encode())
    assert read("2/6") > 3
    recipe["seeds"]["files"][0]["xxh3"] = "0" * 32
    store.put("own/recipe.json", json.dumps(recipe).encode())
    done = run(store, "materialize", "s3://bucket/own", "--shard-rows", 100, "--out", "s3://bucket/own-out")
    assert done.returncode == 1 and "the seed pairs" in done.stderr, done.stderr


def test_ray_needs_no_shared_folder(store, lab):
    """Recipe, seeds, VAE and output in the store, parts as tasks."""
    pytest.importorskip("ray")
    import ray_cluster

    good(store, *synth("recipe"), "--output", "recipe")
    code = """
import json, ray
from lensmith.ray import generate, read_pairs
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
made = generate("s3://bucket/recipe", "s3://bucket/ray", num_parts=3, shard_rows=100)
assert (made["pairs"], made["shards"], made["resumed"]) == (600, 6, 0), made
assert generate("s3://bucket/recipe/", "s3://bucket/ray", num_parts=3, shard_rows=100)["resumed"] == 600
assert read_pairs("s3://bucket/recipe", dtype="float16").count() == 600
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=store.environment() | ray_cluster.settings() | store.variables,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = store.objects("ray")
    assert {name: found[name] for name in SHARDS} == {k: v for k, v in outputs(lab).items() if k in SHARDS}
    assert found["manifest.json"] == outputs(lab)["manifest.json"]


def test_a_process_that_was_forked_has_connections_of_its_own(store, lab):
    code = """
import os, sys
import lensmith as lm
with lm.Engine("cpu", threads=1) as engine:
    assert len(lm.PairSet.open("s3://bucket/in/seeds.safetensors", engine=engine)) == 100
child = os.fork()
if child == 0:
    status = 1
    try:
        with lm.Engine("cpu", threads=1) as engine:
            status = int(len(lm.PairSet.open("s3://bucket/in/seeds.safetensors", engine=engine)) != 100)
    finally:
        os._exit(status)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=store.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
