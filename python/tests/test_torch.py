"""lensmith.torch: datasets that give every pair once and go on where they were; modules and their outputs."""

from __future__ import annotations

import gc
import itertools
import pickle
import random
import sys
import threading
import time
import tracemalloc
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler  # noqa: E402

import lensmith as lm  # noqa: E402
import lensmith.torch as lt  # noqa: E402
from lensmith import _torch_place  # noqa: E402
from lensmith._lensmith import permutation  # noqa: E402
from lensmith._torch_place import Division  # noqa: E402

DIM = 32
WORKERS = (0, 1, 2, 5)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def engine():
    with lm.Engine("cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def real(engine) -> lm.PairSet:
    rng = np.random.default_rng(0)
    chosen = rng.standard_normal((29, DIM), dtype=np.float32)
    rejected = chosen - 0.3 * rng.standard_normal((29, DIM), dtype=np.float32)
    return lm.PairSet(chosen, rejected, engine=engine)


@pytest.fixture(scope="module")
def vae(real, engine) -> lm.Vae:
    return lm.Vae.fit(real, hidden=16, latent=16, epochs=2, engine=engine)


@pytest.fixture(scope="module")
def pairs(real, vae, engine) -> lm.SyntheticPairs:
    """203 pairs: no multiple of a batch, nor of 3 ranks."""
    return lm.synthesize(vae, real, fold=7, engine=engine)


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.indices.tolist()]


def order(pairs, epoch: int, seed: int = 0) -> list[int]:
    return permutation(len(pairs), seed, epoch, 0, len(pairs)).tolist()


def made(pairs, batch_size: int = 17, **options) -> lt.PairIterable:
    return lt.dataset(pairs, batch_size, indices=True, **options)


def plain(data: lt.PairIterable, workers: int, **options) -> DataLoader:
    return DataLoader(data, batch_size=None, num_workers=workers, **options)


# How an epoch is divided.


@given(
    total=some.integers(1, 500),
    batch=some.integers(1, 60),
    ranks=some.integers(1, 9),
    drop_last=some.booleans(),
    data=some.data(),
)
@settings(max_examples=300, deadline=None)
def test_any_division_gives_each_pair_once(total, batch, ranks, drop_last, data):
    """Also when it goes on, once and again, with other batches and ranks from wherever the ranks were."""
    seen: list[int] = []
    start = 0
    for _ in range(3):
        division = Division(total, start, batch, ranks, drop_last)
        if not drop_last and total - start < ranks:
            with pytest.raises(ValueError, match="at most as many ranks as the"):
                division.require_batches()
            return
        steps = data.draw(some.integers(0, division.steps))
        bounds = [division.bounds(step, rank) for step in range(division.steps) for rank in range(ranks)]
        assert all(0 < stop - first <= batch + 1 for first, stop in bounds)
        if drop_last:
            assert all(stop - first == batch for first, stop in bounds)
        rows = [row for first, stop in bounds[: steps * ranks] for row in range(first, stop)]
        rest = [row for first, stop in bounds[steps * ranks :] for row in range(first, stop)]
        assert rows + rest == list(range(start, start + len(rows) + len(rest)))
        left_out = total - start - len(rows) - len(rest)
        assert left_out == (0 if not drop_last else (total - start) % (batch * ranks))
        seen += rows
        epoch, start = division.after(7, steps)
        if epoch == 8:
            assert start == 0 and steps == division.steps
            break
        assert epoch == 7 and start == len(seen)
        batch, ranks = data.draw(some.integers(1, 60)), data.draw(some.integers(1, 9))
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("workers", WORKERS)
def test_every_pair_once_in_one_order_for_any_workers_and_ranks(pairs, workers, ranks):
    shares = []
    for rank in range(ranks):
        data = made(pairs, rank=rank, world_size=ranks)
        loader = plain(data, workers, persistent_workers=workers == 5)
        shares.append([[b.indices.tolist() for b in loader] for _ in range(2)])
        assert {len(share) for share in shares[-1]} == {len(data)} == {len(loader)}
        del loader
    for epoch in range(2):
        assert len({len(share[epoch]) for share in shares}) == 1, "every rank has as many batches"
        steps = zip(*(share[epoch] for share in shares), strict=True)
        rows = [number for step in steps for batch in step for number in batch]
        assert rows == order(pairs, epoch), "rank after rank, step after step: the order of the epoch"
        assert sorted(rows) == list(range(203))
    sizes = [len(batch) for share in shares for batch in share[0][:-1]]
    assert set(sizes) == {17}


def test_batches_are_the_pairs_with_these_numbers(pairs, real):
    for source in (pairs, real):
        for batch in made(source):
            rows = source.take(batch.indices.numpy()) if source is pairs else source[batch.indices.numpy()]
            assert torch.equal(batch.chosen, rows.chosen.torch())
            assert torch.equal(batch.rejected, rows.rejected.torch())
            assert batch.chosen.shape == (len(batch.indices), DIM)


def test_without_shuffling_pairs_come_by_number(pairs):
    data = made(pairs, shuffle=False)
    assert numbers(data) == list(range(203)) == numbers(plain(data, 2))
    assert data.epoch == 2


def test_drop_last_leaves_out_what_fills_no_step(pairs):
    shares = [list(made(pairs, drop_last=True, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(batch.indices) for share in shares for batch in share} == {17}
    assert {len(share) for share in shares} == {3}
    assert sorted(numbers(sum(shares, []))) == sorted(order(pairs, 0)[: 3 * 3 * 17])
    with pytest.raises(ValueError, match=r"drop_last: expected at least 300 pairs"):
        next(iter(made(pairs, 100, drop_last=True, rank=0, world_size=3)))


def test_fewer_pairs_than_ranks_make_the_last_batches_larger(pairs):
    # 203 = 2 * 3 * 33 + 5; 203 = 3 * 67 + 2.
    shares = [[len(b.indices) for b in made(pairs, 67, rank=rank, world_size=3)] for rank in range(3)]
    assert shares == [[67], [68], [68]]
    shares = [[len(b.indices) for b in made(pairs, 33, rank=rank, world_size=3)] for rank in range(3)]
    assert shares == [[33, 33, 1], [33, 33, 2], [33, 33, 2]]
    with pytest.raises(ValueError, match="at most as many ranks as the 203 pairs"):
        len(made(pairs, rank=0, world_size=204))


def test_orders_differ_by_epoch_and_seed(pairs):
    a, b, c = (order(pairs, *which) for which in ((0, 0), (1, 0), (0, 1)))
    assert a != b and a != c and b != c
    assert numbers(made(pairs, seed=1)) == c
    assert numbers(made(pairs, seed=2**64 - 1)) == order(pairs, 0, 2**64 - 1)


# Epochs.


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["plain", "own"])
def test_each_pass_takes_the_next_epoch_and_set_epoch_another(pairs, kind, persistent):
    data = made(pairs, 40)
    loader = (
        plain(data, 2, persistent_workers=persistent)
        if kind == "plain"
        else data.loader(num_workers=2, persistent_workers=persistent)
    )
    assert numbers(loader) == order(pairs, 0)
    assert numbers(loader) == order(pairs, 1)
    data.set_epoch(7)
    assert data.epoch == 7
    assert numbers(loader) == order(pairs, 7)
    assert data.epoch == 8
    assert numbers(loader) == order(pairs, 8)
    assert numbers(data) == order(pairs, 9)
    assert numbers(loader) == order(pairs, 10)


@pytest.mark.parametrize("kind", ["plain", "own"])
def test_a_pass_that_is_left_early_is_a_pass(pairs, kind):
    data = made(pairs, 10)
    loader = plain(data, 2) if kind == "plain" else data.loader(num_workers=2)
    for epoch in range(3):
        assert next(iter(loader)).indices.tolist() == order(pairs, epoch)[:10]
    assert numbers(loader) == order(pairs, 3)
    for _ in range(2):
        iter(data)
    assert data.epoch == 4, "an iterator that gave nothing has taken no epoch"
    assert next(iter(data)).indices.tolist() == order(pairs, 4)[:10]


def test_two_passes_at_once(pairs):
    data = made(pairs, 60)
    own = data.loader(num_workers=2)
    together = list(zip(own, own, plain(data, 2), data, strict=True))
    passes = [numbers(one) for one in zip(*together, strict=True)]
    assert sorted(passes) == sorted(order(pairs, epoch) for epoch in range(4))
    assert passes[:2] == [order(pairs, 0), order(pairs, 1)]


def test_a_plain_loader_repeats_an_epoch_where_torchs_own_shuffle_would(pairs):
    """Whoever resets torch's generator before each pass gets one shuffle again and again, there and here."""
    data = made(pairs)
    own = DataLoader(list(range(203)), batch_size=17, shuffle=True)
    seen, shuffled = [], []
    for _ in range(2):
        torch.manual_seed(5)
        seen.append(numbers(plain(data, 2)))
        torch.manual_seed(5)
        shuffled.append(torch.cat(list(own)).tolist())
    assert seen == [order(pairs, 0)] * 2
    assert shuffled[0] == shuffled[1]
    data.set_epoch(1)
    torch.manual_seed(5)
    assert numbers(plain(data, 2)) == order(pairs, 1), "an epoch that was set counts all the same"


# Going on.


def test_resumed_anywhere_with_other_ranks_workers_and_batches(pairs):
    chance = random.Random(1)
    for trial in range(10):
        ranks, then = chance.choice([(1, 3), (3, 1), (3, 2), (1, 1)])
        workers, later = chance.choice([(0, 2), (2, 0), (1, 5), (5, 1)]) if trial % 2 else (0, 0)
        size, other = chance.choice([7, 17, 30]), chance.choice([7, 17, 30])
        epoch = chance.randrange(3)
        states, shares = [], []
        batches = None
        for rank in range(ranks):
            data = made(pairs, size, rank=rank, world_size=ranks)
            data.set_epoch(epoch)
            batches = chance.randrange(len(data)) if batches is None else batches
            loader = data.loader(num_workers=workers)
            share = []
            for batch in loader if batches else ():
                share.append(batch.indices.tolist())
                if len(share) == batches:
                    break
            states.append(loader.state_dict())
            shares.append(share)
        assert all(state == states[0] for state in states), "ranks agree on the state"
        assert states[0]["epoch"] == epoch and states[0]["position"] == batches * size * ranks
        seen = [n for step in zip(*shares, strict=True) for batch in step for n in batch]
        resumed = []
        for rank in range(then):
            data = made(pairs, other, rank=rank, world_size=then)
            data.load_state_dict(states[rank % ranks])
            loader = plain(data, later) if trial % 3 else data.loader(num_workers=later)
            resumed.append([batch.indices.tolist() for batch in loader])
        rest = [n for step in zip(*resumed, strict=True) for batch in step for n in batch]
        assert seen + rest == order(pairs, epoch), (trial, ranks, then, workers, later, size, other, batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_again_and_again_across_epochs(pairs, workers):
    """One long run, killed after every few batches, sees what a run that is never killed sees."""
    chance, state, seen = random.Random(2), None, []
    while len(seen) < 2 * 203:
        data = made(pairs, 30)
        loader = data.loader(num_workers=workers)
        if state is not None:
            loader.load_state_dict(pickle.loads(pickle.dumps(state)))
            assert loader.state_dict() == state, "nothing is lost by loading a state"
        for count, batch in enumerate(loader, 1):
            seen += batch.indices.tolist()
            if count == chance.choice([2, 3]):
                break
        state = loader.state_dict()
    assert seen[: 2 * 203] == order(pairs, 0) + order(pairs, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_back(pairs, workers):
    data = made(pairs, 50)
    loader = data.loader(num_workers=workers)
    assert loader.state_dict()["position"] == 0
    for batch in loader:
        assert batch.indices.tolist() == order(pairs, 0)[:50]
        state = loader.state_dict()
        break
    assert numbers(loader) == order(pairs, 1)
    loader.load_state_dict(state)
    assert loader.state_dict() == state and state["position"] == 50
    assert numbers(loader) == order(pairs, 0)[50:]
    loader.set_epoch(6)
    assert loader.state_dict()["epoch"] == 6
    assert numbers(loader) == order(pairs, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_after_an_epoch_is_the_beginning_of_the_next(pairs, workers):
    data = made(pairs, 50)
    loader = data.loader(num_workers=workers)
    for epoch in range(2):
        assert numbers(loader) == order(pairs, epoch)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (epoch + 1, 0)
    fresh = made(pairs, 50)
    fresh.load_state_dict(state)
    assert numbers(fresh) == order(pairs, 2)


def test_the_state_of_a_dataset_follows_its_batches(pairs):
    data = made(pairs, 50)
    assert data.state_dict() == {"epoch": 0, "position": 0, "pairs": 203, "shuffle": True, "seed": 0}
    states = [data.state_dict() for _ in data]
    assert [(state["epoch"], state["position"]) for state in states] == [
        (0, 50),
        (0, 100),
        (0, 150),
        (0, 200),
        (1, 0),
    ]
    data.set_epoch(4)
    assert (data.state_dict()["epoch"], data.position) == (4, 0)
    data.resume(epoch=4, batch=3)
    assert (data.epoch, data.position) == (4, 150)
    data.set_epoch(4)
    assert data.position == 150, "set_epoch of the epoch that was resumed keeps the place in it"
    assert numbers(data) == order(pairs, 4)[150:]
    data.resume(epoch=4, batch=3)
    data.set_epoch(5)
    assert numbers(data) == order(pairs, 5)
    data.resume(epoch=4, batch=5)
    assert (data.epoch, data.position) == (5, 0)


def test_with_a_plain_loader_and_workers_the_loop_counts(pairs):
    data = made(pairs, 10)
    data.resume(epoch=2, batch=4)
    loader = plain(data, 2)
    seen = [batch.indices.tolist() for batch in itertools.islice(loader, 3)]
    with pytest.raises(RuntimeError, match="give batches="):
        data.state_dict()
    state = data.state_dict(batches=3)
    assert (state["epoch"], state["position"]) == (2, 70)
    assert data.state_dict(batches=99)["epoch"] == 3
    assert sum(seen, []) == order(pairs, 2)[40:70]
    data.load_state_dict(state)
    assert data.state_dict() == state, "known again"
    assert numbers(loader) == order(pairs, 2)[70:]
    own = data.loader(num_workers=1)
    next(iter(own))
    with pytest.raises(RuntimeError, match="give batches="):
        data.state_dict()
    assert own.state_dict() == data.state_dict(batches=1)


def test_states_of_other_orders_are_refused(pairs, real):
    state = made(pairs, 10, seed=3).state_dict()
    for other, said in (
        (made(pairs), "expected seed 0 as this dataset has, found 3"),
        (made(pairs, seed=3, shuffle=False), "expected shuffle False"),
        (made(real, seed=3), "expected pairs 29 as this dataset has, found 203"),
    ):
        with pytest.raises(ValueError, match=said):
            other.load_state_dict(state)
    data = made(pairs, seed=3)
    for wrong, said in (
        ({"epoch": 0}, "found no position"),
        ({**state, "position": 204}, "position: expected 0 to 203, found 204"),
        ({**state, "epoch": -1}, "epoch: expected 0 to"),
        ({**state, "taken": 2, "workers": 2}, "found that of a worker process"),
    ):
        with pytest.raises(ValueError, match=said):
            data.load_state_dict(wrong)
    data.load_state_dict({"epoch": 1, "position": 203})
    assert (data.epoch, data.position) == (2, 0)
    data.load_state_dict({"epoch": 1, "position": 202})
    assert numbers(data) == order(pairs, 1, 3)[202:]
    data = made(pairs, rank=0, world_size=3)
    data.load_state_dict({"epoch": 1, "position": 202})
    with pytest.raises(ValueError, match="as the 1 pairs that are left"):
        next(iter(data))


def test_a_pickled_dataset_keeps_its_place_and_goes_its_own_way(pairs):
    data = made(pairs, 50)
    data.resume(epoch=3, batch=2)
    other = pickle.loads(pickle.dumps(data))
    assert numbers(other) == order(pairs, 3)[100:] == numbers(data)
    data.set_epoch(9)
    assert other.epoch == 4


# Processes.


def test_spawned_persistent_workers(pairs, monkeypatch):
    """Workers that start from nothing: pairs, place and the rank of this process come with the dataset."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    data = made(pairs, 30)
    data.set_epoch(5)
    loader = plain(data, 2, multiprocessing_context="spawn", persistent_workers=True)
    for epoch in (5, 6):
        alone = made(pairs, 30, rank=1, world_size=3)
        alone.set_epoch(epoch)
        expected = [batch.indices.tolist() for batch in alone]
        got = list(loader)
        assert [batch.indices.tolist() for batch in got] == expected
        assert torch.equal(got[0].chosen, pairs.take(expected[0]).chosen.torch())
    data.set_epoch(9)
    assert numbers(loader)[:30] == order(pairs, 9)[30:60]


def _run_rank(rank, ranks, port, data, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
    )
    seen = []
    for _ in range(2):
        for batch in data.loader(num_workers=1):
            # What gradients do at every step: a rank with fewer batches would leave the others waiting.
            torch.distributed.all_reduce(torch.ones(1))
            seen.append(batch.indices.tolist())
    refused = ""
    other = pickle.loads(pickle.dumps(data))
    other._shared = foreign = _torch_place.Cursor()
    foreign._owner = -1
    try:
        next(iter(plain(other, 1)))
    except RuntimeError as error:
        refused = str(error)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    queue.put((rank, seen, refused))


def test_ranks_in_processes(pairs):
    """Three processes find their ranks, and have one dataset: no rank waits, no place is shared."""
    context = torch.multiprocessing.get_context("fork")
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue, data = context.SimpleQueue(), made(pairs, 16)
    processes = [context.Process(target=_run_rank, args=(rank, 3, port, data, queue)) for rank in range(3)]
    for process in processes:
        process.start()
    found = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    steps = [step for step in zip(*(seen for _, seen, _ in found), strict=True)]
    rows = [number for step in steps for batch in step for number in batch]
    assert rows == order(pairs, 0) + order(pairs, 1)
    assert all("made in another process" in refused for *_, refused in found)
    assert data.epoch == 0, "the ranks have left the place of the process that started them alone"


def test_the_rank_is_found(pairs, monkeypatch):
    data = made(pairs)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "accelerate.state", None)
    assert (data.rank, data.world_size) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert (data.rank, data.world_size) == (0, 1), "a rank without a number of ranks says nothing"
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (data.rank, data.world_size) == (2, 3)
    assert numbers(data)[:17] == order(pairs, 0)[34:51]
    state = types.SimpleNamespace(process_index=1, num_processes=2)
    partial = types.SimpleNamespace(_shared_state={"backend": "gloo"})
    fake = types.SimpleNamespace(PartialState=type("P", (), {"_shared_state": {"a": 1}, **vars(state)}))
    monkeypatch.setitem(sys.modules, "accelerate.state", fake)
    assert (data.rank, data.world_size) == (1, 2)
    fake.PartialState._shared_state = {}
    assert (data.rank, data.world_size) == (2, 3), "accelerate is only asked once it is set up"
    assert partial is not None
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert (data.rank, data.world_size) == (3, 4)
    given_ = made(pairs, rank=0, world_size=2)
    assert (given_.rank, given_.world_size) == (0, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    for rank, size in (("3", "3"), ("x", "3"), ("-1", "3")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ValueError, match="RANK, WORLD_SIZE: expected whole numbers"):
            len(data)


# The thread.


def wait_for(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lensmith-pairs")]


def watched(pairs, monkeypatch, fail_at: int | None = None) -> list[str]:
    """The names of the threads that batches are made by, as they are made."""
    names: list[str] = []
    take = lm.SyntheticPairs.take

    def watch(self, indices, **options):
        names.append(threading.current_thread().name)
        if len(names) == fail_at:
            raise OSError("a disk is gone")
        return take(self, indices, **options)

    monkeypatch.setattr(lm.SyntheticPairs, "take", watch)
    return names


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_a_thread_makes_batches_ahead(pairs, monkeypatch, prefetch):
    names = watched(pairs, monkeypatch)
    data = made(pairs, 10, prefetch=prefetch)
    batches = iter(data)
    assert not names and not threads()
    for count in range(1, 4):
        next(batches)
        assert wait_for(lambda count=count: len(names) == count + prefetch)
        time.sleep(0.02)
        assert len(names) == count + prefetch, "no more than asked for"
        assert data.state_dict()["position"] == count * 10, "what is made ahead is not taken"
    assert len(threads()) == 1 and all(name.startswith("lensmith-pairs") for name in names)
    list(batches)
    assert not threads(), "none is left when the iteration has ended"
    with pytest.raises(StopIteration):
        next(batches)


def test_no_thread_is_left_when_an_iterator_is_dropped(pairs):
    batches = iter(made(pairs, 10, prefetch=3))
    next(batches)
    assert threads()
    del batches
    gc.collect()
    assert wait_for(lambda: not threads())
    for _ in made(pairs, 10):
        break
    gc.collect()
    assert wait_for(lambda: not threads())


def test_nothing_more_is_made_for_an_iterator_that_was_dropped(pairs, monkeypatch):
    names = watched(pairs, monkeypatch)
    take, go_on = lm.SyntheticPairs.take, threading.Event()
    monkeypatch.setattr(
        lm.SyntheticPairs,
        "take",
        lambda self, rows, **options: (len(names) < 1 or go_on.wait(10)) and take(self, rows, **options),
    )
    batches = iter(made(pairs, 10, prefetch=5))
    next(batches)
    del batches
    gc.collect()
    go_on.set()
    assert wait_for(lambda: not threads())
    assert len(names) <= 2, "the one that was being made"


def test_without_prefetch_there_is_no_thread(pairs, monkeypatch):
    names = watched(pairs, monkeypatch)
    assert numbers(made(pairs, prefetch=0)) == order(pairs, 0)
    assert set(names) == {threading.current_thread().name}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_reach_the_loop(pairs, monkeypatch, prefetch):
    watched(pairs, monkeypatch, fail_at=3)
    batches = iter(made(pairs, 10, prefetch=prefetch))
    assert len(next(batches).indices) == len(next(batches).indices) == 10
    with pytest.raises(OSError, match="a disk is gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert not threads()


def test_errors_of_workers_reach_the_loop(pairs, monkeypatch):
    watched(pairs, monkeypatch, fail_at=2)
    batches = iter(plain(made(pairs, 10), 2))
    assert len(next(batches).indices) == len(next(batches).indices) == 10
    with pytest.raises(OSError, match="a disk is gone"):
        next(batches)
    for worker in batches._workers:
        # Torch waits five seconds for workers of an iteration that has failed.
        worker.terminate()


def test_an_interrupt_loses_no_batch(pairs, monkeypatch):
    data = made(pairs, 10)
    batches = iter(data)
    seen = numbers([next(batches)])
    result = lt.Future.result
    interrupts = iter([True, False])

    def interrupted(self, timeout=None):
        if next(interrupts, False):
            raise KeyboardInterrupt
        return result(self, timeout)

    monkeypatch.setattr(lt.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert data.state_dict()["position"] == 10
    assert seen + numbers(batches) == order(pairs, 0)
    assert not threads()


# Memory.


def test_tensors_are_the_engines_memory(pairs, monkeypatch):
    batch = pairs.take([3, 1, 3])
    assert batch.chosen.torch().data_ptr() == batch.chosen.numpy().ctypes.data
    kept = []
    take = lm.SyntheticPairs.take
    monkeypatch.setattr(
        lm.SyntheticPairs, "take", lambda self, rows, **options: kept.append(take(self, rows, **options)) or kept[-1]
    )
    for prefetch in (0, 2):
        kept.clear()
        for number, tensors in enumerate(made(pairs, 50, prefetch=prefetch)):
            assert tensors.chosen.data_ptr() == kept[number].chosen.numpy().ctypes.data
            assert tensors.rejected.data_ptr() == kept[number].rejected.numpy().ctypes.data


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_have_the_dtype_of_the_pairs(real, vae, engine, dtype):
    chosen, rejected = next(
        iter(lm.synthesize(vae, real, fold=2, dtype=dtype, engine=engine).torch(batch_size=8))
    )
    assert chosen.dtype == rejected.dtype == getattr(torch, dtype)


def test_real_pairs_are_copied_by_row(real):
    before = real.chosen.numpy().copy()
    for shuffle in (False, True):
        for batch in made(real, 8, shuffle=shuffle):
            batch.chosen.zero_()
    assert np.array_equal(real.chosen.numpy(), before)
    assert sorted(numbers(made(real, 8).loader(num_workers=2))) == list(range(29))


class Endless(lm.SyntheticPairs):
    """More pairs than any list holds."""

    def __init__(self) -> None:
        """Nothing behind it."""

    def __len__(self) -> int:
        return 10**15

    def take(self, indices, **options):
        rows = lm.Embeddings(np.zeros((len(indices), 1), np.float32))
        return lm.PairBatch(rows, rows, np.asarray(indices, np.uint64))


def test_a_quadrillion_pairs_take_no_memory():
    data = lt.dataset(Endless(), 8, indices=True, rank=5, world_size=8)
    tracemalloc.start()
    try:
        data.load_state_dict({"epoch": 3, "position": 64 * 10**12})
        first = next(iter(data))
        state = data.state_dict()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert state["position"] == 64 * 10**12 + 64
    where = 64 * 10**12 + 5 * 8
    assert first.indices.tolist() == permutation(10**15, 0, 3, where, where + 8).tolist()
    assert len(data) == 10**15 // 64


def test_pinning_needs_cuda(pairs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="pin_memory: expected a CUDA device"):
        pairs.torch(pin_memory=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    assert numbers(made(pairs, 100, pin_memory=True)) == order(pairs, 0)
    assert pinned == [
        (100, DIM),
        (100, DIM),
        (100,),
        (100, DIM),
        (100, DIM),
        (100,),
        (3, DIM),
        (3, DIM),
        (3,),
    ]
    monkeypatch.setattr(lt, "get_worker_info", lambda: types.SimpleNamespace(id=0, num_workers=1, seed=0))
    with pytest.raises(RuntimeError, match="worker processes cannot pin memory"):
        iter(made(pairs, pin_memory=True))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected 1 or more, found 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size: expected a whole number, 1 or more, found 1.5"),
        ({"batch_size": True}, ValueError, "batch_size: expected 1 or more, found True"),
        ({"prefetch": -1}, ValueError, "prefetch: expected 0 or more, found -1"),
        ({"seed": -1}, ValueError, "seed: expected 0 to"),
        ({"seed": 2**64}, ValueError, "seed: expected 0 to"),
        ({"rank": 0}, ValueError, "rank, world_size: expected both or none, found 0 and None"),
        ({"rank": 3, "world_size": 3}, ValueError, "rank: expected 0 to 2, found 3"),
        ({"rank": 0, "world_size": 0}, ValueError, "world_size: expected 1 or more, found 0"),
    ],
)
def test_options_out_of_range(pairs, options, kind, said):
    with pytest.raises(kind, match=said):
        pairs.torch(**options)


def test_what_is_no_dataset(pairs):
    with pytest.raises(TypeError, match="pairs: expected a PairSet or SyntheticPairs, found list"):
        lt.dataset([1, 2])
    with pytest.raises(TypeError, match="data: expected a PairIterable, found PairMap"):
        lt.PairLoader(pairs.torch(map_style=True))
    with pytest.raises(ValueError, match="batch_size: the dataset makes whole batches, of 17 pairs; found 8"):
        made(pairs).loader(batch_size=8)


# Map style.


def test_map_style_has_every_pair(pairs):
    data = pairs.torch(map_style=True, indices=True)
    assert len(data) == 203
    whole = pairs[0:203]
    one = data[7]
    assert one.chosen.shape == (DIM,) and one.indices == 7
    assert torch.equal(one.chosen, whole.chosen.torch()[7])
    assert torch.equal(data[-1].rejected, whole.rejected.torch()[202])
    for several in ([3, -1, 3], np.array([3, -1, 3]), torch.tensor([3, -1, 3])):
        assert data[several].indices.tolist() == [3, 202, 3]
    assert data[5:9].indices.tolist() == [5, 6, 7, 8]
    for wrong in (203, -204, [0, 203]):
        with pytest.raises(IndexError, match="pairs: expected a number below 203"):
            data[wrong]
    with pytest.raises(TypeError):
        data[0.5]
    with pytest.raises(TypeError, match="one or more whole numbers, found 0"):
        data[[]]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_samplers_fetch_whole_batches(pairs, monkeypatch, workers):
    data = pairs.torch(map_style=True, indices=True)
    torch.manual_seed(0)
    stacked = list(DataLoader(data, batch_size=64, shuffle=True, num_workers=workers))
    torch.manual_seed(0)
    names = watched(pairs, monkeypatch)
    kept = list(DataLoader(data, batch_size=64, shuffle=True, num_workers=workers, collate_fn=lt.collate))
    assert workers or len(names) == 4, "one call of the engine a batch"
    assert sorted(numbers(kept)) == list(range(203))
    for a, b in zip(stacked, kept, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    batches = BatchSampler(SequentialSampler(data), 50, drop_last=False)
    assert numbers(DataLoader(data, sampler=batches, batch_size=None, num_workers=workers)) == list(
        range(203)
    )
    shares = [
        numbers(DataLoader(data, 20, sampler=DistributedSampler(data, 3, rank), collate_fn=lt.collate))
        for rank in range(3)
    ]
    assert set(sum(shares, [])) == set(range(203))
    assert lt.collate([torch.zeros(2), torch.ones(2)]).shape == (2, 2)


# Modules.


def rows(n: int = 50, scale: float = 3.0) -> np.ndarray:
    return scale * np.random.default_rng(5).standard_normal((n, DIM), dtype=np.float32)


def close(a, b, what: str = "") -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.isfinite(a).all() and np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), what


def fitted(real, engine, **options) -> lm.RewardModel:
    return lm.RewardModel.fit(real, epochs=3, lr=1e-2, patience=None, engine=engine, **options)


@pytest.mark.parametrize(("head", "ensemble"), [("mlp", 1), ("mlp", 3), ("linear", 1), ("linear", 3)])
def test_reward_modules_give_the_engines_rewards(real, engine, head, ensemble):
    model = fitted(real, engine, head=head, hidden=32, ensemble=ensemble)
    module = model.to_torch()
    x = rows()
    with torch.no_grad():
        close(module(torch.from_numpy(x)).squeeze(-1), model.score(x, engine=engine))
        if head == "mlp" and ensemble == 1:
            assert type(module) is torch.nn.Sequential
            assert [type(layer) for layer in module] == [torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]
        else:
            for a, b in zip(module.spread(torch.from_numpy(x)), model.spread(x, engine=engine), strict=True):
                assert a.shape == (50,)
                assert np.abs(a.numpy() - b).max() <= 1e-5 * np.abs(model.score(x, engine=engine)).max()
            assert module.heads(torch.from_numpy(x)).shape == (50, ensemble)
    state = model.state_dict()
    assert list(module.state_dict()) == list(state)
    for name, value in module.state_dict().items():
        assert np.array_equal(value.numpy(), state[name])
    assert not module.training and all(parameter.requires_grad for parameter in module.parameters())
    again = lm.RewardModel.from_torch(module)
    assert (again.head, again.heads, again.hidden) == (model.head, model.heads, model.hidden)
    assert np.array_equal(again.score(x, engine=engine), model.score(x, engine=engine))


def test_the_vaes_module_gives_the_engines_outputs(vae, engine):
    module, x = vae.to_torch(), torch.from_numpy(rows())
    assert list(module.state_dict()) == list(vae.state_dict())
    with torch.no_grad():
        made_, mu, logvar = module(x)
        for got, expected in zip(module.encode(x), vae.encode(x, engine=engine), strict=True):
            close(got, expected)
        close(module.decode(mu), vae.decode(mu.contiguous(), engine=engine))
        assert torch.equal(made_, module.decode(mu)), "from the mean when it is not training"
        module.train()
        torch.manual_seed(3)
        sampled = module(x).reconstruction
        torch.manual_seed(3)
        assert torch.equal(sampled, module.decode(mu + (logvar / 2).exp() * torch.randn(mu.shape)))
        assert not torch.equal(sampled, made_)
        many = module.sample(
            mu[:1].expand(4000, -1), logvar[:1].expand(4000, -1), torch.Generator().manual_seed(0)
        )
    assert torch.allclose(many.std(0), (logvar[0] / 2).exp(), rtol=0.1)
    again = lm.Vae.from_torch(module)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(again.state_dict().values(), vae.state_dict().values(), strict=True)
    )


def test_a_module_trains_and_comes_back(real, engine):
    module = fitted(real, engine, hidden=32).to_torch()
    chosen, rejected = (torch.from_numpy(side.numpy().copy()) for side in (real.chosen, real.rejected))
    losses = []
    for _ in range(300):
        loss = lt.bradley_terry_loss(module(chosen), module(rejected))
        losses.append(loss.item())
        parameters = list(module.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.3 * slope
    assert losses[-1] < 0.5 * losses[0]
    model = lm.RewardModel.from_torch(module)
    figures = model.evaluate(real, engine=engine)
    with torch.no_grad():
        margins = module(chosen) - module(rejected)
        assert figures["accuracy"] == (margins > 0).float().mean().item()
        assert figures["loss"] == pytest.approx(lt.bradley_terry_loss(margins, 0 * margins).item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_modules_of_other_dtypes_become_float32(real, engine, dtype):
    module = fitted(real, engine, hidden=32).to_torch().to(dtype)
    model = lm.RewardModel.from_torch(module)
    x = rows()
    close(model.score(x, engine=engine), module.float()(torch.from_numpy(x)).detach().squeeze(-1))


class Compiled(torch.nn.Module):
    """Holds a module as torch.compile's does, which takes ten seconds to import."""

    def __init__(self, module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


def test_plain_modules_are_taken(real, engine):
    nn, x = torch.nn, rows()
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(DIM, 48), nn.ReLU(), nn.Linear(48, 1))
    modules = {
        "as it is": core,
        "a hidden layer of 20": nn.Sequential(nn.Linear(DIM, 20), nn.ReLU(), nn.Linear(20, 1)),
        "without biases": nn.Sequential(
            nn.Linear(DIM, 32, bias=False), nn.ReLU(), nn.Linear(32, 1, bias=False)
        ),
        "dropout": nn.Sequential(
            nn.Dropout(0.5), nn.Linear(DIM, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)
        ),
        "one layer": nn.Linear(DIM, 1),
        "one layer without a bias": nn.Sequential(nn.Linear(DIM, 1, bias=False)),
        "compiled": Compiled(core),
        "wrapped": nn.DataParallel(core),
        "compiled and wrapped": nn.DataParallel(Compiled(core)),
    }
    for name, module in modules.items():
        model = lm.RewardModel.from_torch(module)
        with torch.no_grad():
            close(model.score(x, engine=engine), module.eval()(torch.from_numpy(x)).squeeze(-1), name)
    assert lm.RewardModel.from_torch(modules["a hidden layer of 20"]).hidden == 32
    assert lm.RewardModel.from_torch(modules["one layer"]).head == "linear"
    assert lt.from_module(core, {"origin": "here"}).metadata["origin"] == "here"

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(DIM, 20), nn.ReLU(), nn.Linear(20, 32))
            self.decoder = nn.Sequential(nn.Linear(16, 50), nn.ReLU(), nn.Linear(50, DIM, bias=False))

    own = Own()
    vae = lm.Vae.from_torch(own)
    assert (vae.dim, vae.hidden, vae.latent) == (DIM, 64, 16)
    with torch.no_grad():
        mu, logvar = own.encoder(torch.from_numpy(x)).chunk(2, -1)
        close(vae.encode(x, engine=engine)[0], mu)
        close(vae.encode(x, engine=engine)[1], logvar)
        close(vae.decode(mu.contiguous(), engine=engine), own.decoder(mu))


def test_modules_of_other_layers_are_refused(real, engine):
    nn = torch.nn
    linear = nn.Linear
    wrong = [
        ("no module", TypeError, "expected a torch.nn.Module, found str"),
        (nn.Sequential(linear(DIM, 32), nn.GELU(), linear(32, 1)), TypeError, "found Linear, GELU, Linear"),
        (nn.Sequential(linear(DIM, 32), linear(32, 1)), TypeError, "found Linear, Linear"),
        (
            nn.Sequential(linear(DIM, 32), nn.ReLU(), linear(32, 32), nn.ReLU(), linear(32, 1)),
            TypeError,
            "Linear, ReLU",
        ),
        (nn.Sequential(), TypeError, "found no layer"),
        (nn.LayerNorm(DIM), TypeError, "found LayerNorm"),
        (
            nn.Sequential(linear(DIM, 32), nn.ReLU(), linear(32, 2)),
            ValueError,
            "expected one output, the reward, found 2",
        ),
        (
            nn.Sequential(linear(DIM, 32), nn.ReLU(), linear(16, 1)),
            ValueError,
            "of 32 inputs as the first has outputs, found 16",
        ),
        (linear(DIM, 1, device="meta"), ValueError, "found score.weight on the meta device"),
    ]
    for module, kind, said in wrong:
        with pytest.raises(kind, match=said):
            lm.RewardModel.from_torch(module)
    broken = fitted(real, engine, hidden=32).to_torch()
    with torch.no_grad():
        broken[0].weight[3, 4] = float("nan")
    with pytest.raises((ValueError, lm.LensmithError), match="finite"):
        lm.RewardModel.from_torch(broken)
    with pytest.raises(TypeError, match="expected a Vae, found the layers of a RewardModel"):
        lm.Vae.from_torch(linear(DIM, 1))
    with pytest.raises(TypeError, match="model: expected a RewardModel or a Vae, found int"):
        lt.to_module(3)
    vae = lt.VaeModule(DIM)
    vae.encoder[2] = linear(64, 31)
    with pytest.raises(
        ValueError, match="encoder: expected 32 outputs, mu and logvar of the decoder's 16 latents, found 31"
    ):
        lt.from_module(vae)
    vae = lt.VaeModule(DIM)
    vae.decoder[2] = linear(64, DIM + 1)
    with pytest.raises(
        ValueError, match=f"decoder: expected {DIM} outputs as the encoder has inputs, found {DIM + 1}"
    ):
        lt.from_module(vae)
    vae.decoder = linear(16, DIM)
    with pytest.raises(TypeError, match="decoder: expected Linear, ReLU, Linear, found a single Linear"):
        lt.from_module(vae)


def test_fresh_modules_can_be_trained_from_scratch():
    for module in (lt.RewardEnsemble(DIM, 32, 4), lt.LinearReward(DIM, 4), lt.VaeModule(DIM, 32, 16)):
        again = lt.from_module(module).to_torch()
        assert type(again) is type(module)
        x = torch.from_numpy(rows())
        a, b = module.eval()(x), again(x)
        assert torch.equal(a[0] if isinstance(a, tuple) else a, b[0] if isinstance(b, tuple) else b)


def test_bradley_terry_loss():
    chosen, rejected = torch.tensor([2.0, -300.0, 0.0]), torch.tensor([1.0, 300.0, 0.0])
    each = lt.bradley_terry_loss(chosen, rejected, reduction="none")
    assert torch.allclose(
        each, torch.tensor([np.log1p(np.exp(-1.0)), 600.0, np.log(2.0)], dtype=torch.float32)
    )
    assert lt.bradley_terry_loss(chosen, rejected) == each.mean()
    assert lt.bradley_terry_loss(chosen, rejected, reduction="sum") == each.sum()
    with pytest.raises(ValueError, match=r"expected the shape of chosen_rewards, \[3\], found \[3, 1\]"):
        lt.bradley_terry_loss(chosen, rejected[:, None])
    with pytest.raises(ValueError, match="reduction: expected one of mean, sum, none, found 'max'"):
        lt.bradley_terry_loss(chosen, rejected, reduction="max")
