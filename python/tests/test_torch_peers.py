"""lensmith.torch inside torchdata's loader, and what torchdata and datasets do with the same questions.

The assertions on other libraries say what they do in the versions that requirements.txt installs; they are
here so that a comparison that has become untrue fails.
"""

from __future__ import annotations

import itertools
import os
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

import lensmith as lm  # noqa: E402
import lensmith.torch as lt  # noqa: E402
from lensmith._lensmith import permutation  # noqa: E402

DIM = 16
N = 203

pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated", "ignore:This DataLoader will create"
)


@pytest.fixture(scope="module")
def pairs() -> lm.SyntheticPairs:
    engine = lm.Engine("cpu", threads=1)
    rng = np.random.default_rng(0)
    chosen = rng.standard_normal((29, DIM), dtype=np.float32)
    real = lm.PairSet(chosen, chosen - 0.3 * rng.standard_normal((29, DIM), dtype=np.float32), engine=engine)
    vae = lm.Vae.fit(real, hidden=16, latent=16, epochs=1, engine=engine)
    return lm.synthesize(vae, real, fold=7, engine=engine)


def made(pairs, batch_size: int = 20, **options) -> lt.PairIterable:
    return lt.dataset(pairs, batch_size, indices=True, **options)


def order(epoch: int) -> list[int]:
    return permutation(N, 0, epoch, 0, N).tolist()


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.indices.tolist()]


def taken(loader, batches: int) -> list[int]:
    """The numbers of so many batches; the pass is left there."""
    return numbers(itertools.islice(loader, batches))


# torchdata.


@pytest.fixture
def stateful():
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, False), (2, True)])
def test_statefuldataloader_goes_on_anywhere(pairs, stateful, workers, persistent):
    options = {"batch_size": None, "num_workers": workers, "persistent_workers": persistent}
    for batches in (0, 1, 4, 10, 11) if workers == 0 else (0, 4, 11):
        data = made(pairs)
        data.set_epoch(6)
        loader = stateful(data, **options)
        seen = []
        if batches:
            seen = taken(loader, batches) if batches < 11 else numbers(loader)
        state = loader.state_dict()
        again = stateful(made(pairs), **options)
        again.load_state_dict(state)
        rest = numbers(again)
        if batches < 11:
            assert seen + rest == order(6), batches
            assert numbers(again) == order(7)
        else:
            # After a whole epoch the next one follows, none is left out.
            assert (seen, rest) == (order(6), order(7))
            assert numbers(again) == order(8)


@pytest.mark.parametrize("workers", [0, 2])
def test_statefuldataloader_goes_on_again_and_again(pairs, stateful, workers):
    seen, state = [], None
    while len(seen) < N:
        loader = stateful(made(pairs, 30), batch_size=None, num_workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        seen += taken(loader, 3)
        state = loader.state_dict()
    assert seen == order(0)


def test_ranks_of_statefuldataloader_share_a_state(pairs, stateful):
    shares = []
    for rank in range(3):
        loader = stateful(made(pairs, rank=rank, world_size=3), batch_size=None, num_workers=2)
        shares.append(taken(loader, 2))
        state = loader.state_dict()
    for rank in range(3):
        loader = stateful(made(pairs, rank=rank, world_size=3), batch_size=None, num_workers=2)
        loader.load_state_dict(state)
        shares[rank] += numbers(loader)
    assert sorted(sum(shares, [])) == list(range(N))


def test_statefuldataloader_fits_its_own_numbers_only(pairs, stateful, monkeypatch):
    """torchdata keeps a state for each worker, so another number of workers is refused.

    The same question to data.loader() is test_resumed_anywhere_with_other_ranks_workers_and_batches in
    test_torch.py.
    """
    loader = stateful(made(pairs), batch_size=None, num_workers=2)
    seen = taken(loader, 4)
    state = loader.state_dict()
    other = stateful(made(pairs), batch_size=None, num_workers=0)
    other.load_state_dict(state)
    with pytest.raises(AssertionError):
        next(iter(other))
    # What a worker process says to the state of one; torch would wait five seconds for each that has failed.
    own = state["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    assert (own["taken"], own["workers"], own["world_size"]) == (2, 2, 1)
    monkeypatch.setattr(lt, "get_worker_info", lambda: types.SimpleNamespace(id=0, num_workers=1, seed=0))
    with pytest.raises(
        ValueError, match="expected workers 1 as this dataset has, found 2: a worker's state fits"
    ):
        made(pairs).load_state_dict(own)
    with pytest.raises(ValueError, match="state: expected world_size 3 as this dataset has, found 1"):
        made(pairs, rank=0, world_size=3).load_state_dict(own)
    monkeypatch.undo()
    # The number of batches is enough for any other loader.
    data = made(pairs, rank=0, world_size=1)
    data.resume(epoch=0, batch=4)
    assert seen + numbers(DataLoader(data, batch_size=None, num_workers=1)) == order(0)


def test_statefuldistributedsampler_forgets_the_epoch():
    """Its state has no epoch: resumed in the second one, it goes on in the order of the first."""
    sampler = pytest.importorskip("torchdata.stateful_dataloader.sampler").StatefulDistributedSampler
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def build():
        own = sampler(range(40), num_replicas=2, rank=0, shuffle=True)
        return own, loader(range(40), batch_size=5, sampler=own)

    own, batches = build()
    own.set_epoch(1)
    iterator = iter(batches)
    next(iterator)
    state = batches.state_dict()
    rest = torch.cat(list(iterator)).tolist()
    _, again = build()
    again.load_state_dict(state)
    assert torch.cat(list(again)).tolist() != rest


# datasets.


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")

    def build(n: int = N, shards: int = 4):
        return datasets.Dataset.from_dict({"n": list(range(n))}).to_iterable_dataset(num_shards=shards)

    return build


def test_a_shuffle_buffer_is_lost_when_an_iterabledataset_is_resumed(rows, pairs):
    """IterableDataset.shuffle fills its buffer anew after load_state_dict; what was in it is never seen."""

    def shuffled():
        return rows().shuffle(seed=0, buffer_size=50)

    data = shuffled()
    iterator = iter(data)
    seen = [next(iterator)["n"] for _ in range(60)]
    resumed = shuffled()
    resumed.load_state_dict(data.state_dict())
    missing = set(range(N)) - set(seen) - {row["n"] for row in resumed}
    assert missing

    own = made(pairs)
    iterator = iter(own)
    seen = [number for _ in range(3) for number in next(iterator).indices.tolist()]
    resumed = made(pairs)
    resumed.load_state_dict(own.state_dict())
    assert seen + numbers(resumed) == order(0)


def test_an_iterabledataset_repeats_its_order_until_set_epoch(rows, pairs):
    data = rows().shuffle(seed=0, buffer_size=50)
    loader = DataLoader(data, batch_size=None, num_workers=2)
    first, second = ([row["n"] for row in loader] for _ in range(2))
    assert first == second and sorted(first) == list(range(N))

    own = DataLoader(made(pairs), batch_size=None, num_workers=2)
    assert [numbers(own), numbers(own)] == [order(0), order(1)]


def test_ranks_of_split_dataset_by_node_have_unequal_batches(rows, pairs):
    """Of 52 rows on 3 ranks one has a batch of 17 more than the others, and waits for them in all_reduce."""
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    batches = [len(list(DataLoader(split(rows(52), rank, 3), batch_size=17))) for rank in range(3)]
    assert batches == [2, 1, 1]

    real = lm.PairSet(*(np.zeros((52, DIM), np.float32) for _ in range(2)))
    own = [list(made(real, 17, rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(batch.indices) for batch in share] for share in own] == [[17], [17], [18]]
    assert sorted(numbers(sum(own, []))) == list(range(52))


def test_a_rank_state_of_an_iterabledataset_fits_no_other_number_of_ranks(rows):
    """After 4 ranks have seen 20 rows each, 2 ranks that load such a state see 40 of them again."""
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    seen, state = set(), None
    for rank in range(4):
        data = split(rows(), rank, 4)
        iterator = iter(data)
        seen |= {next(iterator)["n"] for _ in range(20)}
        state = state or data.state_dict()
    again: list[int] = []
    for rank in range(2):
        data = split(rows(), rank, 2)
        data.load_state_dict(state)
        again += [row["n"] for row in data]
    assert len(seen & set(again)) == 40


def test_what_iterabledataset_does_as_well(rows):
    """Without a shuffle buffer, and for the same ranks and workers, it goes on exactly, again and again."""
    seen: list[int] = []
    state = None
    for _ in range(2):
        data = rows()
        if state is not None:
            data.load_state_dict(state)
        iterator = iter(data)
        seen += [next(iterator)["n"] for _ in range(30)]
        state = data.state_dict()
    data = rows()
    data.load_state_dict(state)
    assert seen + [row["n"] for row in data] == list(range(N))


# torch.


def test_distributedsampler_gives_some_pairs_twice(pairs):
    """It makes ranks equal by repeating samples; here the last batches differ by one pair instead."""
    theirs = [list(DistributedSampler(range(N), 3, rank)) for rank in range(3)]
    assert sum(map(len, theirs)) == N + 1
    ours = [list(made(pairs, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(numbers(sum(ours, []))) == list(range(N))
    assert [len(share[-1].indices) for share in ours] == [7, 8, 8]


def test_accelerate_prepares_no_loader_of_whole_batches(pairs):
    """It divides batches among processes itself and needs a batch size; these loaders find the rank alone."""
    prepare = pytest.importorskip("accelerate.data_loader").prepare_data_loader
    for loader in (made(pairs).loader(), DataLoader(made(pairs), batch_size=None)):
        with pytest.raises(TypeError):
            list(prepare(loader, num_processes=3, process_index=1, put_on_device=False))
