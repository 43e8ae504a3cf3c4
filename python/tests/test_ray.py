"""lensmith.ray on a cluster of three nodes: whatever is lost on the way, the bytes of one run and each pair once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray_cluster
from conftest import ROOT, arrays_of, environment
from ray_cluster import alive_nodes, another, crash, node_of, programs, wait_for, writers

import lensmith as lm

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore")

#: Pairs of the recipe, and of a shard.
PAIRS, ROWS, DIM = 24_000, 500, 256
PARTS = 6


@pytest.fixture(scope="module")
def lab(tmp_path_factory, engine, program) -> Path:
    """A folder with a recipe whose pairs take seconds to make, and what one run makes of it."""
    lab: Path = tmp_path_factory.mktemp("ray")
    lm.PairSet(*arrays_of(100, DIM), engine=engine).save(lab / "seeds.safetensors")
    seeds = lm.PairSet.open(lab / "seeds.safetensors", engine=engine)
    # Wide, so that pairs take long and few bytes.
    vae = lm.Vae.fit(seeds, hidden=4096, latent=16, epochs=1, engine=engine)
    lm.synthesize(vae, seeds, fold=PAIRS // 100, engine=engine).write(lab / "long", output="recipe")
    seeds.save(lab / "long" / "inputs" / "seeds.safetensors")
    program("materialize", lab / "long", "--shard-rows", ROWS, "--out", lab / "whole")
    return lab


@pytest.fixture(scope="module")
def cluster(lab) -> Iterator[Any]:
    """Three nodes of one CPU each, in a working folder without anything of lensmith in it."""
    before, here = dict(os.environ), Path.cwd()
    os.environ.update(ray_cluster.settings())
    os.chdir(lab)
    try:
        with ray_cluster.cluster(3) as made:
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield made
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def three(cluster) -> Iterator[Any]:
    """The cluster, which has three nodes again afterwards."""
    yield cluster
    while len(cluster.list_all_nodes()) < 3:
        ray_cluster.add_node(cluster)
    wait_for(lambda: alive_nodes() == 3, 60, "three nodes")


def generate(lab: Path, out: str, **options: Any) -> dict[str, Any]:
    from lensmith.ray import generate

    return generate(lab / "long", lab / out, PARTS, shard_rows=ROWS, **options)


def outputs(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for locks and for the manifests of parts."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.startswith(("manifest.part", ".")) or path.name.endswith(".tmp")
    }


def assert_whole(lab: Path, out: str) -> None:
    """The folder is, byte for byte, that of one run."""
    whole, found = outputs(lab / "whole"), outputs(lab / out)
    assert sorted(found) == sorted(whole)
    assert len(found) == PAIRS // ROWS + 2
    for name, content in whole.items():
        assert found[name] == content, f"{out}/{name}"


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Starts work on a thread; the function that it gives waits for what comes of it."""
    came: dict[str, Any] = {}

    def run() -> None:
        try:
            came["result"] = work()
        except BaseException as error:
            came["error"] = error

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Any:
        thread.join(240)
        assert not thread.is_alive(), "it goes on"
        if "error" in came:
            raise came["error"]
        return came["result"]

    return wait


def a_writer(cluster: Any, folder: Path, head: bool = True) -> tuple[int, Any]:
    """A worker that is in the middle of its part, with its node; not the first node's if not `head`."""

    def found() -> tuple[int, Any] | None:
        for worker, path in writers(folder).items():
            number = int(re.findall(r"pairs-(\d+)", path.name)[0])
            node = node_of(cluster, worker)
            # One of its shards is finished already.
            begun = number % (PAIRS // ROWS // PARTS) and (folder / f"pairs-{number - 1:05}.safetensors").exists()
            if begun and node is not None and (head or node is not cluster.head_node):
                return worker, node
        return None

    writer: tuple[int, Any] = wait_for(found, 120, "a worker at work")
    return writer


# Parts


def test_parts_are_one_run(three, lab):
    first = generate(lab, "quiet")
    assert (first["pairs"], first["parts"], first["resumed"]) == (PAIRS, PARTS, 0)
    assert_whole(lab, "quiet")
    again = generate(lab, "quiet")
    assert (again["already"], again["resumed"]) == (True, PAIRS)
    assert_whole(lab, "quiet")


def test_a_node_is_killed_in_the_middle(three, lab):
    end = in_background(lambda: generate(lab, "node"))
    _, node = a_writer(three, lab / "node", head=False)
    crash(three, node)
    result = end()
    # A task went on where the lost one stopped.
    assert result["pairs"] == PAIRS and 0 < result["resumed"] < PAIRS
    assert_whole(lab, "node")


def test_a_worker_is_killed_while_it_writes(three, lab):
    end = in_background(lambda: generate(lab, "worker"))
    worker, _ = a_writer(three, lab / "worker")
    os.kill(worker, signal.SIGKILL)
    result = end()
    assert result["pairs"] == PAIRS and 0 < result["resumed"] < PAIRS
    assert_whole(lab, "worker")


DRIVER = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
{0}
"""


def start_driver(cluster: Any, lab: Path, code: str) -> subprocess.Popen[bytes]:
    """Another driver of the cluster."""
    command = [sys.executable, "-c", DRIVER.format(code), cluster.address]
    return subprocess.Popen(command, cwd=lab, env=ray_cluster.settings())


def test_the_driver_is_killed_and_started_again(three, lab):
    call = f"from lensmith.ray import generate\ngenerate('long', 'driver', {PARTS}, shard_rows={ROWS})"
    driver = start_driver(three, lab, call)
    a_writer(three, lab / "driver")
    driver.kill()
    driver.wait()
    # At once: workers of the first driver may still be at work.
    result = generate(lab, "driver")
    assert result["pairs"] == PAIRS and 0 < result["resumed"] < PAIRS
    assert_whole(lab, "driver")


def test_a_seed_file_is_lost_on_one_node(three, lab):
    if not ray_cluster.has_namespaces():
        pytest.skip("this system gives processes no file systems of their own (unshare)")
    with ray_cluster.node_without(lab / "long" / "inputs", three.address):
        with pytest.raises(lm.LensmithError) as caught:
            generate(lab, "lost")
    said = str(caught.value)
    assert caught.value.kind == "Incomplete"
    for line in said.splitlines()[:-1]:
        assert re.match(r"part \d/6 on \S+, node [0-9a-f]{12}: .*inputs/\S+.safetensors: No such file", line), said
    failed = re.fullmatch(r"(\d) of 6 parts failed; the others are whole, .*", said.splitlines()[-1])
    assert failed and 1 <= int(failed[1]) < 6, said
    # Nothing is lost: what is missing is made where the files are.
    assert generate(lab, "lost")["resumed"] == PAIRS // PARTS * (PARTS - int(failed[1]))
    assert_whole(lab, "lost")


def test_another_recipe_on_one_node_is_an_error(three, lab):
    from lensmith.ray import _nodes

    source = _nodes.RecipeFile.read(lab / "long", False)
    other = lab / "other.json"
    other.write_text(Path(source.path).read_text() + "\n")
    with pytest.raises(lm.LensmithError, match=r"other.json: expected the recipe that the driver read .*, found another"):
        _nodes.RecipeFile(str(other), source.digest, False, source.pairs, source.dim).require_same()


def test_another_version_on_one_node_is_an_error(three, lab):
    # The package as it is, but that its compiled module tells another version.
    package = lab / "old" / "lensmith"
    package.mkdir(parents=True)
    for path in (ROOT / "python" / "lensmith").iterdir():
        if not path.name.startswith("_lensmith."):
            (package / path.name).symlink_to(path)
    (package / "_lensmith.py").write_text(
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('lensmith._lensmith', {lm._lensmith.__file__!r})\n"
        "module = module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "globals().update({k: v for k, v in vars(module).items() if not k.startswith('__')})\n"
        "__version__ = '0.0.9'\n"
    )
    path = os.pathsep.join([str(lab / "old"), os.environ["PYTHONPATH"]])
    with another(three, env_vars={"PYTHONPATH": path}, resources={"old": 1}):
        with pytest.raises(lm.LensmithError) as caught:
            generate(lab, "version", resources={"CPU": 1, "old": 0.5})
    said = str(caught.value)
    assert caught.value.kind == "Mismatch"
    assert f"expected lensmith {lm.__version__}, as on the driver, found 0.0.9 in {lab / 'old' / 'lensmith'}" in said
    assert re.match(r"part 0/6 on \S+, node [0-9a-f]{12}: ", said)
    assert not (lab / "version").exists()


CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME) time->tv_sec -= 7200;
    return failed;
}
"""


def test_a_node_whose_clock_is_two_hours_behind(three, lab, monkeypatch):
    source, library = lab / "clock.c", lab / "clock.so"
    source.write_text(CLOCK)
    compiler = [sys.executable, "-m", "ziglang", "cc"] if not shutil.which("cc") else ["cc"]
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    # Where Ray looks for an allocator, which it loads before anything else.
    monkeypatch.setenv("RAY_JEMALLOC_LIB_PATH", str(library))
    monkeypatch.setenv("RAY_LD_PRELOAD_ON_WORKERS", "1")
    with another(three, resources={"behind": 1}):

        @ray.remote
        def now() -> float:
            return time.clock_gettime(time.CLOCK_REALTIME)

        there = ray.get(now.options(resources={"behind": 0.1}).remote())
        assert 7000 < time.time() - there < 7400
        # Begun there, and finished by all.
        end = in_background(lambda: generate(lab, "clocks", resources={"CPU": 1, "behind": 0.1}))
        worker, _ = a_writer(three, lab / "clocks")
        os.kill(worker, signal.SIGKILL)
        end()
        for i in range(0, PAIRS // ROWS, 5):
            (lab / "clocks" / f"pairs-{i:05}.safetensors").unlink()
        generate(lab, "clocks")
    assert_whole(lab, "clocks")


def test_two_drivers_at_once(three, lab):
    ends = [in_background(lambda: generate(lab, "both")) for _ in range(2)]
    for end in ends:
        assert end()["pairs"] == PAIRS
    assert_whole(lab, "both")


def test_an_output_of_other_settings_is_refused_or_replaced(three, lab):
    generate(lab, "settings", output="latents")
    with pytest.raises(lm.LensmithError, match=r"part 0/6 on .*output.kind.* 6 parts|part 0/6 on .*output.kind") as caught:
        generate(lab, "settings")
    assert caught.value.kind == "Exists"
    generate(lab, "settings", overwrite=True)
    assert_whole(lab, "settings")


# Data sets


def table_of(dataset: Any) -> Any:
    """All rows of a data set, ordered by their numbers."""
    return pa.concat_tables(ray.get(dataset.to_arrow_refs())).sort_by("pair")


def few(lab: Path, engine: lm.Engine, **options: Any) -> tuple[Path, lm.SyntheticPairs]:
    """A recipe of 600 pairs, and the pairs."""
    folder = lab / "few"
    if not folder.exists():
        seeds = lm.PairSet.open(lab / "seeds.safetensors", engine=engine)
        vae = lm.Vae.fit(seeds, hidden=16, latent=16, epochs=1, engine=engine)
        lm.synthesize(vae, seeds, fold=6, engine=engine).write(folder, output="recipe")
    return folder, lm.SyntheticPairs.open(folder, engine=engine, **options)


@pytest.mark.parametrize(("dtype", "column"), [("float32", "float"), ("float16", "halffloat")])
def test_pairs_are_read_as_fixed_size_lists_in_blocks_of_bytes(three, lab, engine, dtype, column):
    from lensmith.ray import read_pairs

    folder, pairs = few(lab, engine, dtype=dtype)
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 64 << 10
    try:
        dataset = read_pairs(folder, dtype=dtype, indices=True, num_blocks=3)
        row = 2 * DIM * np.dtype(dtype).itemsize + 8
        assert [str(kind) for kind in dataset.schema().types] == [f"fixed_size_list<item: {column}>[{DIM}]"] * 2 + ["int64"]
        blocks = ray.get(dataset.to_arrow_refs())
    finally:
        context.target_max_block_size = before
    # Ray itself puts blocks together up to half as much again.
    assert max(block.num_rows for block in blocks) * row <= 1.5 * (64 << 10) < 200 * row
    assert len(blocks) >= 3 * (200 * row // (96 << 10))
    table = pa.concat_tables(blocks).sort_by("pair")
    assert table["pair"].to_pylist() == list(range(600))
    made, whole = lm.PairSet.from_arrow(table.drop_columns("pair"), engine=engine), pairs[0:600]
    assert made.chosen.tobytes() == whole.chosen.tobytes()
    assert made.rejected.tobytes() == whole.rejected.tobytes()
    assert read_pairs(folder).count() == 600
    batch = next(iter(read_pairs(folder).iter_torch_batches(batch_size=50)))
    assert batch["chosen"].shape == (50, DIM)


def test_blocks_of_a_node_that_is_killed_are_made_again(three, lab, engine):
    from lensmith.ray import read_pairs

    folder, pairs = few(lab, engine)
    with another(three, resources={"doomed": 1}) as node:
        dataset = read_pairs(folder, indices=True, num_blocks=4, resources={"CPU": 1}).materialize()
        three.remove_node(node, allow_graceful=False)
        table = table_of(dataset)
    assert table["pair"].to_pylist() == list(range(600))
    assert lm.PairSet.from_arrow(table.drop_columns("pair"), engine=engine).chosen.tobytes() == pairs[0:600].chosen.tobytes()


def written(lab: Path, out: str) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (lab / out).iterdir() if path.name != ".ray.lock"}
    assert not [name for name in found if name.startswith(".")]
    return found


def test_a_folder_is_written_that_lensmith_reads(three, lab, engine, program):
    from lensmith.ray import read_pairs, write_pairs

    folder, pairs = few(lab, engine)
    dataset = read_pairs(folder, indices=True, num_blocks=3)
    summary = write_pairs(dataset, lab / "written", order="pair", shard_rows=128)
    assert (summary["pairs"], summary["shards"]) == (600, 5)
    found, whole = lm.PairSet.open(lab / "written", engine=engine), pairs[0:600]
    assert found.chosen.tobytes() == whole.chosen.tobytes()
    assert found.rejected.tobytes() == whole.rejected.tobytes()
    assert "600 rows in 5 shards" in program("verify", lab / "written").stdout
    # Once more with other blocks: the same bytes.
    write_pairs(read_pairs(folder, indices=True, num_blocks=7), lab / "written-7", order="pair", shard_rows=128)
    assert written(lab, "written-7") == written(lab, "written")

    with pytest.raises(lm.LensmithError, match="expected no pairs here, found 600: overwrite=True replaces it") as caught:
        write_pairs(dataset, lab / "written")
    assert caught.value.kind == "Exists"
    write_pairs(dataset.limit(100), lab / "written", order="pair", overwrite=True)
    assert len(lm.PairSet.open(lab / "written", engine=engine)) == 100
    with pytest.raises(lm.LensmithError, match="expected a folder of write_pairs"):
        write_pairs(dataset, lab / "whole", overwrite=True)


def test_rows_are_in_the_order_of_the_data_set_whatever_comes_first(three, lab, engine):
    from lensmith.ray import read_pairs, write_pairs

    folder, pairs = few(lab, engine)

    last, overtaken = lab / "last", lab / "overtaken"

    def first_is_last(table: Any) -> Any:
        first = table["pair"][0].as_py()
        if first == 400:
            last.touch()
        if first == 0:
            wait_until = time.monotonic() + 30
            while not last.exists() and time.monotonic() < wait_until:
                time.sleep(0.05)
            time.sleep(1)
            overtaken.touch() if last.exists() else None
        return table

    # Enough of them for blocks to be made at once.
    with another(three, cpus=8):
        blocks = read_pairs(folder, indices=True, num_blocks=3)
        mixed = blocks.map_batches(first_is_last, batch_size=200, batch_format="pyarrow")
        write_pairs(mixed, lab / "mixed", shard_rows=128)
    assert overtaken.exists()
    assert lm.PairSet.open(lab / "mixed", engine=engine).chosen.tobytes() == pairs[0:600].chosen.tobytes()


def test_tensors_and_groups_are_written_too(three, lab, engine):
    from lensmith.ray import write_pairs

    chosen, rejected = arrays_of(40, 8)
    group = np.arange(40) // 2
    dataset = ray.data.from_numpy([chosen]).rename_columns({"data": "a"}).add_column("g", lambda t: group, batch_format="numpy")
    dataset = dataset.zip(ray.data.from_numpy([rejected]).rename_columns({"data": "b"}))
    write_pairs(dataset, lab / "tensors", chosen="a", rejected="b", group="g")
    found = lm.PairSet.open(lab / "tensors", engine=engine)
    assert (found.chosen.numpy() == chosen).all() and (found.rejected.numpy() == rejected).all()
    assert (found.group == group).all()


def in_order(dataset: Any) -> Any:
    """The data set in blocks of 100 rows, which are put together in the order of its rows and not as they come."""
    dataset = dataset.repartition(target_num_rows_per_block=100, strict=True)
    dataset.context.execution_options.preserve_order = True
    return dataset


@pytest.mark.parametrize("lost", ["worker", "node"])
def test_a_write_that_ran_twice_is_there_once(three, lab, engine, lost):
    """The task is lost when its shards are written and before Ray knows."""
    from lensmith.ray import PairsDatasink, read_pairs

    folder, _ = few(lab, engine)
    reached, out = lab / f"reached-{lost}", lab / f"twice-{lost}"

    class Lost(PairsDatasink):  # type: ignore[misc]
        def write(self, blocks: Any, ctx: Any) -> Any:
            shards = super().write(blocks, ctx)
            try:
                os.close(os.open(reached, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return shards
            (out / "writer").write_text(str(os.getpid()))
            if lost == "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    # Only the other nodes, for a driver is lost with its own.
    others = {"resources": {"other": 0.1}}
    with another(three, cpus=2, resources={"other": 1}) as node:
        spare = ray_cluster.add_node(three, 2, resources={"other": 1}) if lost == "node" else None
        dataset = in_order(read_pairs(folder, indices=True, num_blocks=3, resources={"CPU": 1, "other": 0.1}))
        end = in_background(lambda: dataset.write_datasink(Lost(out, order="pair"), ray_remote_args=others))
        if lost == "node":
            wait_for((out / "writer").exists, 120, "a write")
            writer = int(wait_for((out / "writer").read_text, 10, "its process"))
            doomed = node_of(three, writer)
            assert doomed in (node, spare)
            crash(three, doomed)
        end()
        if spare in three.worker_nodes:
            three.remove_node(spare, allow_graceful=False)
    (out / "writer").unlink()
    assert reached.exists()
    plain = lab / "once"
    if not plain.exists():
        whole = in_order(read_pairs(folder, indices=True))
        whole.write_datasink(PairsDatasink(plain, order="pair"))
    assert written(lab, out.name) == written(lab, plain.name)
    assert len(lm.PairSet.open(out, engine=engine)) == 600


def test_a_driver_that_is_killed_while_it_writes_leaves_nothing_half_done(three, lab, engine):
    from lensmith.ray import read_pairs, write_pairs

    folder, pairs = few(lab, engine)
    slow = """
import time
from lensmith.ray import read_pairs, write_pairs
def slowly(table):
    time.sleep(0.3 * (table['pair'][0].as_py() > 99))
    return table
pairs = read_pairs('few', indices=True, num_blocks=6).map_batches(slowly, batch_size=20, batch_format='pyarrow')
write_pairs(pairs, 'stopped', order='pair', shard_rows=100)
"""
    out = lab / "stopped"
    driver = start_driver(three, lab, slow)
    wait_for(lambda: list(out.glob(".ray-*/*.safetensors")), 120, "a shard")
    with pytest.raises(lm.LensmithError, match="another driver is writing here") as caught:
        write_pairs(read_pairs(folder), out)
    assert caught.value.kind == "Busy"
    driver.kill()
    driver.wait()
    assert not list(out.glob("pairs-*"))
    with pytest.raises(lm.LensmithError) as caught:
        lm.PairSet.open(out, engine=engine)
    assert caught.value.kind in ("Incomplete", "TooFew")
    write_pairs(read_pairs(folder, indices=True), out, order="pair", shard_rows=100)
    assert lm.PairSet.open(out, engine=engine).chosen.tobytes() == pairs[0:600].chosen.tobytes()
    assert sorted(written(lab, "stopped")) == ["manifest.json", *(f"pairs-{i:05}.safetensors" for i in range(6))]


def test_rows_that_do_not_fit_are_refused(three, lab, engine):
    from lensmith.ray import read_pairs, write_pairs

    folder, _ = few(lab, engine)
    pairs = read_pairs(folder, indices=True)
    for dataset, options, words in [
        (pairs.union(pairs), {"order": "pair"}, "pair: expected each number once"),
        (pairs, {"order": "number"}, "expected a column 'number', found chosen, rejected, pair"),
        (pairs, {"chosen": "text"}, "expected a column 'text'"),
        (pairs, {"chosen": "pair"}, "pair: expected lists of numbers, found int64"),
        (pairs.filter(lambda row: False), {}, "expected one or more rows, found none"),
    ]:
        with pytest.raises(lm.LensmithError, match=re.escape(words)):
            write_pairs(dataset, lab / "refused", **options)
        assert not list((lab / "refused").glob("*pairs*")) and not list((lab / "refused").glob(".ray-*"))

    def broken(table: Any) -> Any:
        rows = np.full((table.num_rows, DIM), np.nan, np.float32)
        return {"chosen": rows, "rejected": rows}

    nan = pairs.map_batches(broken, batch_format="pyarrow")
    with pytest.raises(lm.LensmithError, match=r"writing to \S+ on \S+, node [0-9a-f]{12}: .*chosen.*NaN"):
        write_pairs(nan, lab / "refused")


def test_rewards_are_those_of_the_model(three, lab, engine):
    from lensmith.ray import read_pairs, score

    folder, pairs = few(lab, engine)
    seeds = lm.PairSet.open(lab / "seeds.safetensors", engine=engine)
    model = lm.RewardModel.fit(seeds, hidden=16, epochs=1, engine=engine)
    model.save(lab / "reward.safetensors")
    dataset = read_pairs(folder, indices=True, num_blocks=2)
    whole = pairs[0:600]
    for given in (model, "reward.safetensors"):
        table = table_of(score(dataset, given, actors=(1, 2), batch_rows=100))
        assert table.column_names == ["chosen", "rejected", "pair", "chosen_reward", "rejected_reward"]
        assert table["chosen_reward"].to_numpy().tobytes() == model.score(whole.chosen, engine=engine).tobytes()
        assert table["rejected_reward"].to_numpy().tobytes() == model.score(whole.rejected, engine=engine).tobytes()
    with pytest.raises(Exception, match=r"scoring on \S+, node [0-9a-f]{12}: .*none.safetensors"):
        score(dataset, "none.safetensors").materialize()


def test_embeddings_are_those_of_embed(three, lab, engine):
    pytest.importorskip("transformers")
    embed_models = pytest.importorskip("embed_models")
    from lensmith.ray import embed

    model = lab / "model"
    embed_models.llama().save_pretrained(model)
    embed_models.tokenizer().save_pretrained(model)
    rows = [{"prompt": f"q{i // 2}", "chosen": f" yes {i}", "rejected": f" no {i}", "pair": i} for i in range(24)]
    options = {"dtype": "f32", "normalize": True}
    whole = lm.embed(rows, str(model), progress=False, **options)
    table = table_of(embed(ray.data.from_items(rows), model, keep=["pair"], batch_rows=7, **options))
    assert [str(field.type) for field in table.schema] == ["fixed_size_list<item: float>[32]"] * 2 + ["int64"] * 2
    found = lm.PairSet.from_arrow(table.drop_columns("pair"), engine=engine)
    # Batches of other texts round otherwise.
    np.testing.assert_allclose(found.chosen.numpy(), whole.chosen.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.rejected.numpy(), whole.rejected.numpy(), atol=1e-5)
    assert (found.group == whole.group).all()
    with pytest.raises(Exception, match=r"embedding 1 rows with .* on \S+, node .*: .*row 0: .*chosen"):
        embed(ray.data.from_items([{"chosen": None, "rejected": "b"}]), model).materialize()


# Sweeps

SWEEP = [
    *("--seeds", "40", "--validation-pairs", "30", "--splits", "2", "--grid", "sigma2=0.01,0.1"),
    *("--hidden", "16", "--latent", "16", "--vae-epochs", "2", "--reward-hidden", "32", "--epochs", "2", "--batch", "16"),
]


def cells_of(folder: Path) -> dict[str, bytes]:
    names = ["results.jsonl", "results.csv", *(f"{kind}/{p.name}" for kind in ("cells", "vaes") for p in (folder / kind).iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_sweep_has_the_cells_of_one_machine(three, lab, program):
    from lensmith.ray import sweep

    program("sweep", lab / "seeds.safetensors", *SWEEP, "--threads", 1, "--out", lab / "sweep-whole")
    # A relative path is one of this process's working folder.
    report = sweep(["seeds.safetensors", *SWEEP], lab / "sweep", 3)
    assert report["cells"] == 8
    assert cells_of(lab / "sweep") == cells_of(lab / "sweep-whole")
    before = {path: path.stat().st_mtime_ns for path in (lab / "sweep" / "cells").iterdir()}
    sweep(["seeds.safetensors", *SWEEP], lab / "sweep", 2)
    assert {path: path.stat().st_mtime_ns for path in (lab / "sweep" / "cells").iterdir()} == before


def test_a_worker_is_killed_during_a_sweep(three, lab, program):
    from lensmith.ray import sweep

    long = [*SWEEP]
    long[long.index("--vae-epochs") + 1] = "3000"
    out = lab / "sweep-killed"
    end = in_background(lambda: sweep(["seeds.safetensors", *long], out, 2))
    started, worker = next(iter(wait_for(lambda: programs(out), 120, "a sweep").items()))
    wait_for(lambda: list(out.glob(".sweep*")), 60, "its lock")
    os.kill(worker, signal.SIGKILL)
    assert len(list(out.glob("cells/*.json"))) < 8
    # What it started ends with it.
    wait_for(lambda: started not in programs(out), 10, "the end of its program")
    assert end()["cells"] == 8
    program("sweep", lab / "seeds.safetensors", *long, "--threads", 1, "--out", lab / "sweep-long")
    assert cells_of(out) == cells_of(lab / "sweep-long")


def test_a_sweep_names_what_is_missing_and_what_is_wrong(three, lab):
    from lensmith.ray import sweep

    with pytest.raises(lm.LensmithError, match=r"sweep 0/2 on \S+, node \w{12}: cannot open none.safetensors") as caught:
        sweep(["none.safetensors", *SWEEP], lab / "sweep-none", 2)
    assert caught.value.kind == "Failed"
    with pytest.raises(lm.LensmithError, match="--colour") as caught:
        sweep(["seeds.safetensors", *SWEEP, "--colour", "red"], lab / "sweep-none", 2)
    assert caught.value.kind == "InvalidArgument"
    with pytest.raises(TypeError, match="arguments: expected a list of strings"):
        sweep("seeds.safetensors", lab / "sweep-none", 2)


# The page


def test_the_blocks_of_the_page_run(three, lab, engine, capsys):
    embed_models = pytest.importorskip("embed_models")
    section = (ROOT / "docs" / "clusters.md").read_text().split("\n## Ray\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "python", "python"]
    # What a reader has, in the working folder of the workers.
    seeds = lm.PairSet.open("seeds.safetensors", engine=engine)
    lm.Vae.fit(seeds, hidden=16, latent=16, epochs=1, engine=engine).save("vae.safetensors")
    lm.RewardModel.fit(seeds, hidden=16, epochs=1, engine=engine).save("reward.safetensors")
    embed_models.llama().save_pretrained("model")
    embed_models.tokenizer().save_pretrained("model")
    rows = [{"prompt": f"q{i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(8)]
    Path("comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names: dict[str, object] = {"__name__": "__main__"}
    for kind, code in blocks:
        if kind == "sh":
            command = [sys.executable, "-c", "from lensmith._program import main; raise SystemExit(main())"]
            subprocess.run([*command, *code.split()[1:], "--device", "cpu"], env=environment(), check=True)
        else:
            exec(compile(code, "clusters.md", "exec"), names)  # noqa: S102
    assert "600 3\n" in capsys.readouterr().out
    made = lm.PairSet.open("synth", engine=engine)
    kept = lm.PairSet.open("kept", engine=engine)
    assert len(made) == 600 and 0 < len(kept) < 600 and kept.dtype == "float16"
    assert len(lm.PairSet.open("pairs", engine=engine)) == 8
    assert Path("sweeps/sigma2/results.csv").exists()


# Without a cluster


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"num_parts": 0}, ValueError, "num_parts: expected 1 or more, found 0"),
        ({"resources": {"CPU": -1}}, ValueError, "resources: expected a number, 0 or more, for 'CPU', found -1"),
        ({"resources": {"CPU": "all"}}, ValueError, "for 'CPU', found 'all'"),
        ({"output": "recipe"}, ValueError, 'output: expected "embeddings" or "latents", found "recipe"'),
        ({"retries": -2}, ValueError, "retries: expected 0 or more, found -2"),
        ({"recipe": 7}, TypeError, "recipe: expected a path, found int"),
        ({"recipe": "nowhere.json"}, lm.LensmithError, "nowhere.json: No such file"),
        ({"recipe": __file__}, lm.LensmithError, "test_ray.py: expected a recipe, found something else"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(change, kind, words, tmp_path):
    from lensmith.ray import generate

    arguments = {"recipe": __file__, "out": tmp_path / "out", "num_parts": 2} | change
    with pytest.raises(kind, match=re.escape(words)):
        generate(**arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("resources", "options", "place"),
    [
        (None, {"num_cpus": 1}, ("cpu", 1)),
        ({"CPU": 4, "disk": 0.5}, {"num_cpus": 4, "resources": {"disk": 0.5}}, ("cpu", 4)),
        ({"CPU": 0.5, "GPU": 0.25}, {"num_cpus": 0.5, "num_gpus": 0.25}, ("cuda", 1)),
        ({"CPU": 8, "GPU": 2, "memory": 1e9}, {"num_cpus": 8, "num_gpus": 2, "memory": 1e9}, ("cuda:all", 8)),
    ],
)
def test_resources_are_what_ray_gives_and_what_the_engine_takes(resources, options, place):
    from lensmith.ray import _nodes

    assert _nodes.ray_options(resources) == options
    made = _nodes.Place.of(resources)
    assert (made.device, made.threads, made.version) == (*place, lm.__version__)


def test_a_part_that_is_written_elsewhere_is_waited_for(monkeypatch):
    from lensmith.ray import _nodes, _tasks

    calls = []

    def work() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise _nodes.failure("Busy", "out: another lensmith process is writing here")
        return "done"

    monkeypatch.setattr(_tasks.time, "sleep", lambda _: None)
    assert _tasks._when_free(work) == "done"
    monkeypatch.setattr(_tasks, "_PATIENCE", -1.0)
    calls.clear()
    with pytest.raises(lm.LensmithError, match="another lensmith process"):
        _tasks._when_free(work)


def test_without_ray_an_error_says_what_to_install(run_python):
    code = "import sys; sys.modules['ray'] = None\nimport lensmith\ntry:\n    import lensmith.ray\nexcept ImportError as e:\n    print(e)"
    assert run_python(code).stdout == "lensmith.ray needs ray[data]: pip install 'lensmith[ray]'\n"
