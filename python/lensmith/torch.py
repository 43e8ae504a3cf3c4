"""Pairs as datasets for ``torch.utils.data``, and models as ``torch.nn.Module``.

Datasets
--------
:func:`dataset` (or ``pairs.torch()``) makes a dataset of synthetic or real pairs::

    data = synthetic.torch(batch_size=1024, seed=0)
    loader = data.loader(num_workers=2)                        # a DataLoader that knows where it is,
    loader = DataLoader(data, batch_size=None, num_workers=2)  # or torch's own
    for chosen, rejected in loader:
        ...

Batches are made whole, by one call of the engine. A plain ``DataLoader`` needs ``batch_size=None``, or it
would stack batches into batches.

*Order.* The order of an epoch is a keyed permutation of the pairs' numbers, computed where it is needed;
nothing of the size of the data set is kept. Every pass (every ``iter`` of the loader or of the dataset) takes
the next epoch, which has another order; :meth:`PairIterable.set_epoch` chooses one.

*Ranks and workers.* Batch g of the epoch's order goes to rank g modulo the number of ranks, and a rank's
batch s to worker s modulo the number of workers, so a loader yields them in order for any number of workers.
Rank and number of ranks are those given, else those of ``torch.distributed``, accelerate or the environment
(``RANK``, ``WORLD_SIZE``) when a pass begins. With tensor or pipeline parallelism give the data parallel
ones.

*The ragged end.* All ranks get the same number of batches, so that none waits for another in a collective
operation, and every pair is there exactly once: the pairs that fill no whole batch on every rank are shared
out evenly, as smaller last batches (or as one pair more, where there are fewer of them than ranks).
``drop_last=True`` leaves them out instead.

*Resuming.* The state is an epoch and a position, counted in pairs over all ranks. It therefore fits another
batch size and any other number of workers and ranks: the pairs that remain are exactly those that were not
seen. ``data.loader()`` has ``state_dict()`` and ``load_state_dict()``; so has the dataset itself, where no
worker processes are involved, and torchdata's ``StatefulDataLoader`` saves the state of every worker (for the
same number of workers and ranks). With a plain ``DataLoader`` and workers only the training loop knows how
many batches it took: ``data.state_dict(batches=...)``.

*Workers.* Worker processes may be forked or spawned and may be persistent. Torch moves a worker's tensors
through shared memory; without workers they are the engine's own output, without a copy, and a thread makes
the next ones meanwhile. A GPU engine cannot be used in forked workers, and each worker's engine has threads
of its own: give :func:`lensmith.synthesize` an ``Engine("cpu", threads=...)`` where workers are many.

*accelerate.* These loaders divide their batches among processes themselves. ``Accelerator.prepare`` would do
it again, and fails on loaders without a batch size: leave them out of it, and move batches to its device.

Modules
-------
:func:`to_module` and :func:`from_module` translate models; both sides give the same outputs up to rounding.
"""

# Torch is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("lensmith.torch needs torch: pip install torch") from error
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from ._lensmith import permutation
from ._pairs import PairSet
from ._synthesis import SyntheticPairs
from ._torch_modules import (
    LinearReward,
    RewardEnsemble,
    VaeModule,
    VaeOutput,
    bradley_terry_loss,
    from_module,
    to_module,
)
from ._torch_place import Cursor, Division, find_ranks, parent, spawning, whole

__all__ = [
    "IndexedTensors",
    "LinearReward",
    "PairIterable",
    "PairLoader",
    "PairMap",
    "PairTensors",
    "RewardEnsemble",
    "VaeModule",
    "VaeOutput",
    "bradley_terry_loss",
    "collate",
    "dataset",
    "from_module",
    "to_module",
]

Source = PairSet | SyntheticPairs


class PairTensors(NamedTuple):
    """Some pairs, or one."""

    #: Embeddings of the preferred responses, [b, d], or [d] of one pair.
    chosen: torch.Tensor
    #: Embeddings of the other responses, of the same shape.
    rejected: torch.Tensor


class IndexedTensors(NamedTuple):
    """Some pairs with their numbers."""

    #: Embeddings of the preferred responses, [b, d], or [d] of one pair.
    chosen: torch.Tensor
    #: Embeddings of the other responses, of the same shape.
    rejected: torch.Tensor
    #: Numbers of the pairs in their source, int64 [b], or [] of one pair.
    indices: torch.Tensor


Batch = PairTensors | IndexedTensors


def dataset(
    pairs: Source,
    batch_size: int = 1024,
    *,
    shuffle: bool = True,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
    map_style: bool = False,
    pin_memory: bool = False,
    on_device: bool = False,
    prefetch: int = 2,
    indices: bool = False,
) -> PairIterable | PairMap:
    """A dataset over pairs for ``torch.utils.data.DataLoader``.

    How it is divided among ranks and workers, and how it is resumed, is told at the top of the module.

    Args:
        pairs: Synthetic pairs, made when they are needed, or real ones, of which rows are copied.
        batch_size: Pairs a batch, on each rank.
        shuffle: Whether every epoch has an order of its own; otherwise pairs come by number.
        seed: Of the orders, from 0 to 2^64 - 1.
        rank: The part of the pairs that this process takes, from 0; by default found as told there.
        world_size: The number of parts; given together with ``rank``.
        drop_last: Whether to leave out the pairs that fill no whole batch on every rank.
        map_style: A dataset of single pairs for torch's own samplers, :class:`PairMap`; of the options only
            ``indices`` is used then.
        pin_memory: Whether batches are in page-locked memory, for faster copies to a CUDA device. An engine on a GPU
            makes synthetic pairs there; others are copied. With worker processes this is the loader's to do: give
            it ``pin_memory=True`` instead.
        on_device: Whether synthetic pairs stay in the memory of the engine's GPU, where torch takes them without a
            copy. Without worker processes only.
        prefetch: Batches that a thread makes ahead when there are no worker processes; 0 for no thread.
        indices: Whether batches have the numbers of their pairs as a third field.

    Raises:
        TypeError: Something else than pairs.
        ValueError: An option out of range.
        RuntimeError: ``pin_memory`` where CUDA cannot be used.
        LensmithError: ``on_device`` with an engine that is no GPU's, when a pass begins.
    """
    if not isinstance(pairs, PairSet | SyntheticPairs):
        raise TypeError(f"pairs: expected a PairSet or SyntheticPairs, found {type(pairs).__name__}")
    if map_style:
        return PairMap(pairs, indices=indices)
    return PairIterable(
        pairs,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        pin_memory=pin_memory,
        on_device=on_device,
        prefetch=prefetch,
        indices=indices,
    )


def _make(source: Source, numbers: np.ndarray, indices: bool, pin: bool, on_device: bool = False) -> Batch:
    """The pairs with these numbers as tensors over the engine's output."""
    if isinstance(source, SyntheticPairs):
        own = pin and source.device.startswith("cuda")
        sides = source.take(numbers, on_device=on_device, pinned=own).torch()
        pin = pin and not own
    else:
        rows = source[numbers]
        sides = rows.chosen.torch(), rows.rejected.torch()
    batch: Batch = PairTensors(*sides)
    if indices:
        batch = IndexedTensors(*sides, torch.from_numpy(numbers.astype(np.int64)))
    return type(batch)(*(tensor.pin_memory() for tensor in batch)) if pin else batch


@dataclass
class _Progress:
    """A pass, and how far it is."""

    epoch: int
    division: Division
    rank: int
    worker: int = 0
    workers: int = 1
    #: Batches that were taken, in a worker process those of the worker; None if that is not known.
    taken: int | None = None

    def step(self, number: int) -> int | None:
        """The step of this worker's batch `number`, while there is one."""
        step = number * self.workers + self.worker
        return step if step < self.division.steps else None


class PairIterable(IterableDataset[Batch]):
    """Batches of pairs in the order of an epoch; see :func:`dataset` for the arguments.

    Iteration gives :class:`PairTensors`, or :class:`IndexedTensors` with ``indices=True``; ``len()`` is the
    number of batches of a whole epoch on this rank.
    """

    def __init__(
        self,
        pairs: Source,
        batch_size: int = 1024,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        on_device: bool = False,
        prefetch: int = 2,
        indices: bool = False,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank, world_size: expected both or none, found {rank} and {world_size}")
        if rank is not None and world_size is not None:
            world_size = whole(world_size, "world_size", 1)
            rank = whole(rank, "rank", 0, world_size - 1)
        if on_device and (pin_memory or not isinstance(pairs, SyntheticPairs)):
            found = "pin_memory too" if pin_memory else type(pairs).__name__
            raise ValueError(f"on_device: expected synthetic pairs without pin_memory, found {found}")
        by_engine = pin_memory and isinstance(pairs, SyntheticPairs) and pairs.device.startswith("cuda")
        if pin_memory and not by_engine and not torch.cuda.is_available():
            raise RuntimeError(
                "pin_memory: expected a CUDA device that torch can use, found none; leave it out"
            )
        self.pairs = pairs
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.shuffle = bool(shuffle)
        self.seed = whole(seed, "seed", 0, 2**64 - 1)
        self.drop_last = bool(drop_last)
        self.pin_memory = bool(pin_memory)
        self.on_device = bool(on_device)
        self.prefetch = whole(prefetch, "prefetch", 0)
        self.indices = bool(indices)
        self._given = rank, world_size
        # For a spawned worker: the process that started it, its rank and the number of ranks.
        self._inherited: tuple[int, int, int] | None = None
        self._shared = Cursor()
        self._loaders = 0
        # The pass that this process makes batches for, or a PairLoader's workers; the passes that other
        # workers had begun.
        self._progress: _Progress | None = None
        self._passes = 0
        # In a worker process: where the next pass begins; the passes of this copy; the PairLoader and its
        # first pass.
        self._resumed: tuple[int, int, int] | None = None
        self._count = 0
        self._loop: tuple[int, int, int] | None = None

    @property
    def rank(self) -> int:
        """The rank that batches are for."""
        return self._ranks()[0]

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._ranks()[1]

    def _ranks(self) -> tuple[int, int]:
        if self._inherited is not None and get_worker_info() is not None and self._inherited[0] == parent():
            return self._inherited[1:]
        return find_ranks(*self._given)

    def _division(self, start: int = 0) -> Division:
        return Division(len(self.pairs), start, self.batch_size, self._ranks()[1], self.drop_last)

    def __len__(self) -> int:
        division = self._division()
        division.require_batches()
        return division.steps

    @property
    def _cursor(self) -> Cursor:
        if get_worker_info() is None and (owned := self._shared.owned()) is not self._shared:
            self._shared, self._passes = owned, 0
        return self._shared

    def _place(self, epoch: int, position: int) -> None:
        """Sets where the next pass begins."""
        self._cursor.place(epoch, position)
        self._progress, self._passes = None, self._cursor.passes

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._cursor.next[0]

    @property
    def position(self) -> int:
        """Where in its epoch the next pass begins, in pairs over all ranks: 0, or where it was resumed."""
        return self._cursor.next[1]

    def set_epoch(self, epoch: int) -> None:
        """Makes ``epoch`` the next pass's, from its first pair or where :meth:`load_state_dict` was in it.

        Workers that are alive (``persistent_workers``) hear of it when they begin their next pass.
        """
        epoch = whole(epoch, "epoch", 0, 2**62)
        there, position = self._cursor.next
        self._place(epoch, position if epoch == there else 0)

    def resume(self, epoch: int, batch: int) -> None:
        """Begins the next pass behind so many batches of an epoch that this rank (and every other) has had.

        They are counted from the epoch's first pair, in batches of this dataset's size and number of ranks.
        """
        epoch, batch = whole(epoch, "epoch", 0, 2**62), whole(batch, "batch", 0, len(self))
        self._place(*self._division().after(epoch, batch))

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where the pass is, for :meth:`load_state_dict`: epoch, and position in pairs over all ranks.

        Ranks that have had as many batches have the same state. After an epoch's last batch it is the
        beginning of the next.

        Args:
            batches: Batches that this process has taken of the current pass. Only needed with a plain
                ``DataLoader`` that has workers, since it does not tell; not in worker processes, whose state
                is their own (``StatefulDataLoader`` asks them).

        Raises:
            RuntimeError: Worker processes make the batches, and ``batches`` is missing.
        """
        progress, cursor = self._progress, self._cursor
        if get_worker_info() is not None and progress is not None:
            division = progress.division
            return {
                "epoch": progress.epoch,
                "position": division.start,
                **self._order,
                "taken": progress.taken,
                "workers": progress.workers,
                "batch_size": division.batch,
                "world_size": division.ranks,
                "drop_last": division.drop_last,
            }
        if cursor.passes != self._passes:
            progress = self._pass_of(*cursor.last)
        if batches is None and progress is not None and progress.taken is None:
            raise RuntimeError(
                "the batches are made by worker processes, which do not tell how many were handed out: "
                "use the state_dict of data.loader(), or give batches=, the number taken since the pass began"
            )
        if progress is None:
            progress = self._pass_of(*cursor.next)
        taken = progress.taken or 0 if batches is None else whole(batches, "batches", 0)
        epoch, position = progress.division.after(progress.epoch, taken)
        return {"epoch": epoch, "position": position, **self._order}

    @property
    def _order(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        return {"pairs": len(self.pairs), "shuffle": self.shuffle, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begins the next pass where :meth:`state_dict` was.

        Batch size, number of ranks and of workers may be others than those it was saved with; not in the
        states of single worker processes that ``StatefulDataLoader`` saves.

        Raises:
            ValueError: A state of other pairs, or of another order; it would not mean the same pairs.
        """
        missing = [name for name in ("epoch", "position") if name not in state]
        if missing:
            raise ValueError(f"state: expected epoch and position, found no {' and no '.join(missing)}")
        own = self._order
        if "taken" in state:
            info = get_worker_info()
            if info is None:
                raise ValueError("state: expected one of the whole dataset, found that of a worker process")
            own |= {"batch_size": self.batch_size, "world_size": self.world_size, "drop_last": self.drop_last}
            own["workers"] = info.num_workers
        for name, value in own.items():
            if name in state and state[name] != value:
                why = (
                    "its positions mean other pairs"
                    if name in self._order
                    else "a worker's state fits no other"
                )
                raise ValueError(
                    f"state: expected {name} {value} as this dataset has, found {state[name]}: {why}"
                )
        epoch = whole(state["epoch"], "epoch", 0, 2**62)
        position = whole(state["position"], "position", 0, len(self.pairs))
        if get_worker_info() is not None:
            self._resumed = epoch, position, whole(state.get("taken", 0), "taken", 0)
            return
        end = position == len(self.pairs)
        self._place(epoch + 1 if end else epoch, 0 if end else position)

    def loader(self, **options: Any) -> PairLoader:
        """A ``DataLoader`` of the batches that can say where it is; takes the arguments of ``DataLoader``."""
        return PairLoader(self, **options)

    def __iter__(self) -> Iterator[Batch]:
        return _Pass(self)

    def _pass_of(self, epoch: int, start: int, taken: int | None = None) -> _Progress:
        """A pass that begins there."""
        return _Progress(epoch, self._division(start), self._ranks()[0], taken=taken)

    def _begin(self) -> _Progress:
        """Takes the place of the next pass."""
        cursor = self._cursor
        epoch, start = cursor.next
        progress = self._pass_of(epoch, start, taken=0)
        progress.division.require_batches()
        cursor.follow(epoch)
        self._progress, self._passes = progress, cursor.passes
        return progress

    def _begin_in_worker(self, worker: int, workers: int, seed: int) -> _Progress:
        """Takes the place that all workers of this one's loader take."""
        count, self._count = self._count, self._count + 1
        taken = 0
        if self._resumed is not None:
            (epoch, start, taken), self._resumed = self._resumed, None
            if worker == 0:
                # The parent process has not heard of this state.
                self._shared.begun(epoch, start)
        elif self._loop is not None:
            # The first pass is this copy's own; a loader with persistent workers leaves the others in its
            # row.
            epoch, start = self._loop[1:] if count == 0 else self._shared.loader(self._loop[0]).tolist()
        else:
            epoch, start = self._shared.take_in_worker(worker, seed, count)
        self._progress = _Progress(epoch, self._division(start), self._ranks()[0], worker, workers, taken)
        self._progress.division.require_batches()
        return self._progress

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_progress": None, "_passes": 0, "_resumed": None, "_count": 0}
        if spawning():
            # A worker is to read for this process's rank, which it could not find out.
            state |= {"_shared": self._cursor, "_inherited": (os.getpid(), *self._ranks())}
        return state

    def __repr__(self) -> str:
        options = f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed}"
        return f"PairIterable({self.pairs!r}, {options})"


@dataclass(frozen=True)
class _Maker:
    """Makes the batch of a step; what the thread of a pass holds."""

    source: Source
    shuffle: bool
    seed: int
    indices: bool
    pin: bool
    on_device: bool
    progress: _Progress

    def __call__(self, step: int) -> Batch:
        progress = self.progress
        start, stop = progress.division.bounds(step, progress.rank)
        if self.shuffle:
            numbers = permutation(len(self.source), self.seed, progress.epoch, start, stop)
        else:
            numbers = np.arange(start, stop, dtype=np.uint64)
        return _make(self.source, numbers, self.indices, self.pin, self.on_device)


class _Pass(Iterator[Batch]):
    """One iteration over a dataset.

    Without workers the pass begins with the first batch, so that an iterator that is never used takes no
    epoch, and a thread makes batches ahead. The thread ends with the iteration, or when this object is no
    longer used.
    """

    def __init__(self, data: PairIterable) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}
        self._over = False
        self._data = data
        self._maker: _Maker | None = None
        info = get_worker_info()
        if info is not None:
            if data.on_device:
                raise RuntimeError("on_device: worker processes cannot share a GPU's memory; use none")
            if data.pin_memory:
                raise RuntimeError(
                    "pin_memory: worker processes cannot pin memory; give it to the loader instead"
                )
            self._maker = self._maker_of(
                data._begin_in_worker(info.id, info.num_workers, info.seed - info.id)
            )

    def _maker_of(self, progress: _Progress) -> _Maker:
        data = self._data
        places = data.pin_memory, data.on_device
        return _Maker(data.pairs, data.shuffle, data.seed, data.indices, *places, progress)

    def _begin(self) -> _Maker:
        self._maker = self._maker_of(self._data._begin())
        if self._data.prefetch:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lensmith-pairs")
        return self._maker

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Batch:
        if self._over:
            raise StopIteration
        try:
            maker = self._maker or self._begin()
            number = maker.progress.taken or 0
            batch = self._batch(maker, number)
        except KeyboardInterrupt:
            # Nothing has been taken: the iteration can go on.
            raise
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        maker.progress.taken = number + 1
        return batch

    def _batch(self, maker: _Maker, number: int) -> Batch | None:
        step = maker.progress.step
        if self._pool is None:
            at = step(number)
            return None if at is None else maker(at)
        self._ahead.pop(number - 1, None)
        for coming in range(number, number + self._data.prefetch + 1):
            at = step(coming)
            if at is not None and coming not in self._ahead:
                self._ahead[coming] = self._pool.submit(maker, at)
        return self._ahead[number].result() if number in self._ahead else None

    def close(self) -> None:
        """Ends the iteration, and its thread."""
        self._over = True
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __del__(self) -> None:
        # Not waited for: this may run anywhere, in that thread too.
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class PairLoader(DataLoader[Batch]):
    """A ``DataLoader`` that counts what it hands out; made by :meth:`PairIterable.loader`.

    :meth:`state_dict` is exact at any batch, for any number of workers, however far they work ahead.
    """

    def __init__(self, data: PairIterable, **options: Any) -> None:
        if not isinstance(data, PairIterable):
            raise TypeError(f"data: expected a PairIterable, found {type(data).__name__}")
        if options.setdefault("batch_size", None) is not None:
            raise ValueError(
                f"batch_size: the dataset makes whole batches, of {data.batch_size} pairs; found "
                f"{options['batch_size']} for the loader: give it to the dataset"
            )
        data._loaders += 1
        self._number = data._loaders
        # The pass of the workers, and the generation of the place when it began.
        self._pass: tuple[_Progress, int] | None = None
        super().__init__(data, **options)

    @property
    def _pairs(self) -> PairIterable:
        data = self.dataset
        assert isinstance(data, PairIterable)
        return data

    def __iter__(self) -> Any:
        data = self._pairs
        if self.num_workers == 0:
            return super().__iter__()
        progress = data._begin()
        place = progress.epoch, progress.division.start
        data._cursor.loader(self._number)[:] = place
        # The dataset itself is not told of the batches that are handed out.
        data._progress = data._pass_of(*place)
        data._loop = self._number, *place
        try:
            batches = super().__iter__()
        finally:
            data._loop = None
        self._pass = progress, data._cursor.generation
        return self._count(batches, progress)

    @staticmethod
    def _count(batches: Iterator[Batch], progress: _Progress) -> Iterator[Batch]:
        for number, batch in enumerate(batches, 1):
            progress.taken = number
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the current pass is, as :meth:`PairIterable.state_dict` has it."""
        data = self._pairs
        if self._pass is None or self._pass[1] != data._cursor.generation:
            return data.state_dict()
        progress = self._pass[0]
        epoch, position = progress.division.after(progress.epoch, progress.taken or 0)
        return {"epoch": epoch, "position": position, **data._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begins the next pass where :meth:`state_dict` was; see :meth:`PairIterable.load_state_dict`."""
        self._pairs.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`PairIterable.set_epoch`."""
        self._pairs.set_epoch(epoch)


# Map style.

T = TypeVar("T", bound=Batch)


class _Rows(Sequence[T], Generic[T]):
    """The rows of a batch, which :func:`collate` gives back whole."""

    def __init__(self, batch: T) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch[0])

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[T]: ...
    def __getitem__(self, row: int | slice) -> T | Sequence[T]:
        picked = type(self.batch)(*(tensor[row] for tensor in self.batch))
        return _Rows(picked) if isinstance(row, slice) else picked


class PairMap(Dataset[Batch]):
    """Single pairs by number, for torch's own samplers; made by :func:`dataset` with ``map_style=True``.

    ``data[i]`` is one pair, [d] each; ``data[[3, 1, 4]]`` (a list, array or tensor of numbers) and
    ``data[a:b]`` are batches. A ``DataLoader`` fetches all pairs of a batch at once; with
    ``collate_fn=lensmith.torch.collate`` it hands out that batch without taking it apart and stacking it
    again::

        loader = DataLoader(data, batch_size=256, shuffle=True, collate_fn=lensmith.torch.collate)
    """

    def __init__(self, pairs: Source, *, indices: bool = False) -> None:
        self.pairs = pairs
        self.indices = bool(indices)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: Any) -> Batch:
        """One pair, or several as a batch.

        Raises:
            IndexError: A number that is not there.
        """
        if isinstance(number, slice):
            return self._take(np.arange(len(self))[number])
        if np.ndim(number) == 1:
            return self._take(np.asarray(number))
        at = operator.index(number)
        return type(batch := self._take(np.array([at])))(*(tensor[0] for tensor in batch))

    def __getitems__(self, numbers: Sequence[int]) -> Sequence[Batch]:
        """Several pairs in one call of the engine."""
        return _Rows(self._take(np.asarray(numbers)))

    def _take(self, numbers: np.ndarray) -> Batch:
        n = len(self)
        if numbers.dtype.kind not in "iu" or not numbers.size:
            raise TypeError(
                f"pairs: expected one or more whole numbers, found {numbers.size} of {numbers.dtype}"
            )
        numbers = numbers.astype(np.int64)
        wrong = numbers[(numbers < -n) | (numbers >= n)]
        if wrong.size:
            raise IndexError(f"pairs: expected a number below {n}, found {wrong[0]}")
        return _make(self.pairs, np.where(numbers < 0, numbers + n, numbers), self.indices, pin=False)

    def __repr__(self) -> str:
        return f"PairMap({self.pairs!r})"


def collate(samples: Any) -> Any:
    """A ``collate_fn`` for :class:`PairMap`: the batch as it was fetched; else torch's default."""
    return samples.batch if isinstance(samples, _Rows) else default_collate(samples)
