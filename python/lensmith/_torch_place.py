"""Which pairs a batch of an epoch has, on which rank, and where a pass over them begins."""

# Torch is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import operator
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: Seconds that a worker waits for worker 0 of its loader to begin.
_PATIENCE = 300.0


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number in a range."""
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, {limits}, found {value!r}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{name}: expected {limits}, found {value!r}")
    return number


@dataclass(frozen=True)
class Division:
    """How the pairs of an epoch from a position on are divided into the batches of each rank.

    A step is one batch on every rank.
    """

    total: int
    start: int
    batch: int
    ranks: int
    drop_last: bool

    @property
    def stride(self) -> int:
        """Pairs of a whole step."""
        return self.batch * self.ranks

    @property
    def steps(self) -> int:
        """Batches of each rank."""
        whole, rest = divmod(self.total - self.start, self.stride)
        # Fewer pairs than ranks are no step of their own: they make the last whole one larger.
        return whole if self.drop_last or rest < self.ranks else whole + 1

    def bounds(self, step: int, rank: int) -> tuple[int, int]:
        """Where in the epoch's order a rank's batch begins and ends."""
        first = self.start + step * self.stride
        if self.drop_last or step < self.steps - 1:
            return first + rank * self.batch, first + (rank + 1) * self.batch
        rest = self.total - first
        return first + rank * rest // self.ranks, first + (rank + 1) * rest // self.ranks

    def after(self, epoch: int, steps: int) -> tuple[int, int]:
        """Epoch and position after so many steps: those of the next epoch after the last."""
        return (epoch + 1, 0) if steps >= self.steps else (epoch, self.start + steps * self.stride)

    def require_batches(self) -> None:
        """Fails where some rank would get none though pairs are left."""
        left = self.total - self.start
        if self.drop_last:
            if self.start == 0 and self.steps == 0:
                raise ValueError(
                    f"drop_last: expected at least {self.stride} pairs, a batch of {self.batch} on each of "
                    f"{self.ranks} ranks, found {self.total}: make batch_size smaller, or leave out drop_last"
                )
        elif 0 < left < self.ranks:
            raise ValueError(
                f"world_size: expected at most as many ranks as the {left} pairs that are left of the epoch, "
                f"found {self.ranks}: use fewer ranks, drop_last=True, or begin the next epoch with set_epoch"
            )


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks: those given, else those of this process."""
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank()), int(torch.distributed.get_world_size())
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.PartialState._shared_state:
        state = accelerate.PartialState()
        return int(state.process_index), int(state.num_processes)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        found = os.environ["RANK"], os.environ["WORLD_SIZE"]
        try:
            rank, world_size = int(found[0]), int(found[1])
        except ValueError:
            rank, world_size = 0, 0
        if not 0 <= rank < world_size:
            raise ValueError(
                f"RANK, WORLD_SIZE: expected whole numbers, the first below the second, found {found[0]!r} "
                f"and {found[1]!r} in the environment: correct them, or give rank and world_size"
            )
        return rank, world_size
    return 0, 1


def parent() -> int | None:
    """The process that started this one through multiprocessing."""
    parent = multiprocessing.parent_process()
    return None if parent is None else parent.pid


def spawning() -> bool:
    """Whether this is called while an object is pickled for a process that is being started."""
    return multiprocessing.context.get_spawning_popen() is not None


class Cursor:
    """The epoch and position of the next pass, in memory that worker processes share.

    A plain DataLoader copies its dataset into every worker, for each pass or once for all, and tells the
    dataset nothing. So workers agree on the epoch of their pass here: worker 0 takes the one that is next and
    notes it under the pass's key, the others look the key up. The key is the base seed of the DataLoader,
    which is new in every pass just as the seed of torch's RandomSampler is; with the number of passes that
    this copy of a persistent worker has made; and the generation, which `place` raises. No lock is needed:
    one process writes at a time, and a note counts from the moment its last field, the base seed, is there.

    A PairLoader takes the place itself, and leaves it for its workers in a row of its own.
    """

    _GENERATION, _EPOCH, _POSITION, _PASSES, _LAST_EPOCH, _LAST_POSITION = range(6)
    _LOADERS = 64
    _NOTES = 256

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        self._table = torch.zeros(1 + self._LOADERS + self._NOTES, 6, dtype=torch.int64).share_memory_()
        self._owner = os.getpid()
        self.place(epoch, position)

    @property
    def _head(self) -> np.ndarray:
        """What is next, and the last pass that workers began."""
        row: np.ndarray = self._table[0].numpy()
        return row

    @property
    def next(self) -> tuple[int, int]:
        """Epoch and position of the next pass."""
        return int(self._head[self._EPOCH]), int(self._head[self._POSITION])

    @property
    def generation(self) -> int:
        """How often the place was set."""
        return int(self._head[self._GENERATION])

    @property
    def passes(self) -> int:
        """Passes that workers of plain loaders have begun."""
        return int(self._head[self._PASSES])

    @property
    def last(self) -> tuple[int, int]:
        """Epoch and position of the last of them."""
        return int(self._head[self._LAST_EPOCH]), int(self._head[self._LAST_POSITION])

    def owned(self) -> Cursor:
        """This one in the process that made it; in another, which is no worker of it, a new one."""
        return self if self._owner == os.getpid() else Cursor(*self.next)

    def place(self, epoch: int, position: int) -> None:
        """Sets what is next."""
        self._head[[self._EPOCH, self._POSITION]] = epoch, position
        self._head[self._GENERATION] += 1

    def follow(self, epoch: int) -> None:
        """Makes the epoch behind this one the next: a pass has begun."""
        self._head[[self._EPOCH, self._POSITION]] = epoch + 1, 0

    def begun(self, epoch: int, position: int) -> None:
        """Notes that workers have begun a pass."""
        self._head[[self._LAST_EPOCH, self._LAST_POSITION]] = epoch, position
        self._head[self._PASSES] += 1
        self.follow(epoch)

    def loader(self, number: int) -> np.ndarray:
        """Epoch and position of the current pass of a PairLoader."""
        row: np.ndarray = self._table[1 + number % self._LOADERS].numpy()[:2]
        return row

    def take_in_worker(self, worker: int, seed: int, count: int) -> tuple[int, int]:
        """Epoch and position for a worker's pass: its `count`-th, with the base seed `seed`."""
        if parent() != self._owner:
            raise RuntimeError(
                "the dataset was made in another process than the one whose loader reads it, and processes "
                "must not share a place: make the dataset in each rank, or call its set_epoch or loader there"
            )
        generation, notes = self.generation, self._table[1 + self._LOADERS :].numpy()
        deadline, pause = time.monotonic() + _PATIENCE, 0.0005
        while True:
            found = np.flatnonzero((notes[:, :3] == (generation, count, seed)).all(axis=1))
            if found.size:
                return int(notes[found[0], 3]), int(notes[found[0], 4])
            if worker == 0:
                epoch, position = self.next
                self.begun(epoch, position)
                note = notes[self.passes % self._NOTES]
                note[2] = -1
                note[3:5] = epoch, position
                note[0:2] = generation, count
                note[2] = seed
                return epoch, position
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"worker 0 has not begun its pass within {_PATIENCE:.0f} s of worker {worker}"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if spawning() else {"next": self.next}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "next" in state:
            self.__init__(*state["next"])  # type: ignore[misc]
        else:
            self.__dict__.update(state)
