"""Preference pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _lensmith
from ._engine import Engine, core, require_kind, whole
from ._lensmith import Embeddings
from ._optional import require

Rows = slice | Sequence[int] | np.ndarray


class PairSet:
    """Preference pairs: embeddings of chosen and rejected responses, [n, d] each.

    Args:
        chosen: [n, d], float32, float16 or bfloat16, C-contiguous: numpy, torch, or anything with the buffer protocol
            or DLPack. It is not copied, and must not change while it is in use.
        rejected: As ``chosen``.
        group: One whole number a pair, [n]; pairs of one number (one prompt) stay together in :func:`split`.

    Raises:
        TypeError: Not an array, or of another dtype.
        ValueError: Shapes that do not fit, rows that are not contiguous, no rows.
        LensmithError: A value that is not finite, with its row and column.
    """

    def __init__(self, chosen: Any, rejected: Any, group: Any | None = None, *, engine: Engine | None = None) -> None:
        numbers = None if group is None else _whole_numbers(group, "group").tolist()
        self._engine = engine
        self._made: _lensmith.Pairs | None = _lensmith.Pairs.of_arrays(core(engine), chosen, rejected, numbers)
        self._parent: PairSet | None = None
        self._rows: np.ndarray | None = None

    @classmethod
    def _of(cls, made: _lensmith.Pairs | None, engine: Engine | None) -> PairSet:
        pairs = cls.__new__(cls)
        pairs._engine, pairs._made, pairs._parent, pairs._rows = engine, made, None, None
        return pairs

    @classmethod
    def open(
        cls,
        *paths: str | os.PathLike[str],
        chosen: str = "chosen",
        rejected: str = "rejected",
        group: str | None = None,
        check: bool = True,
        engine: Engine | None = None,
    ) -> PairSet:
        """Opens safetensors files, folders of them, or patterns, joined in order; the files are memory-mapped.

        Args:
            chosen: Name of the tensor [n, d] of preferred responses.
            rejected: Name of the tensor [n, d] of the others.
            group: Name of the int64 tensor [n] of prompts; by default ``group``, where there is one.
            check: Whether to look at every value now; of very large files that takes as long as reading them.

        Raises:
            LensmithError: A file that cannot be read, lacks a tensor, or holds a value that is not finite.
        """
        names = [os.fspath(path) for path in paths]
        if not names:
            raise ValueError("paths: expected one or more files, found none")
        return cls._of(_lensmith.Pairs.open(core(engine), names, chosen, rejected, group, check), engine)

    @classmethod
    def from_arrow(
        cls,
        table: Any,
        chosen: str = "chosen",
        rejected: str = "rejected",
        group: str | None = None,
        engine: Engine | None = None,
    ) -> PairSet:
        """Pairs in columns of lists of numbers: a ``datasets.Dataset``, or whatever pyarrow makes a table of.

        Columns of one chunk whose lists are of fixed size, float32 or float16, are not copied.

        Args:
            table: The table.
            chosen: Name of the column of preferred responses.
            rejected: Name of the column of the others.
            group: Name of the column of prompts; by default ``group``, where there is one.

        Raises:
            ValueError: A column that is not there, nulls, or lists of different lengths.
        """
        pa = require("pyarrow", "PairSet.from_arrow()")
        if hasattr(table, "with_format") and hasattr(table, "data"):
            table = table.with_format("arrow")[:]
        columns = pa.table(table)
        names = columns.column_names
        for name in (chosen, rejected, *((group,) if group else ())):
            if name not in names:
                raise ValueError(f"table: expected a column {name!r}, found {', '.join(names)}")
        sides = [_matrix(pa, columns[name], name) for name in (chosen, rejected)]
        group = group or ("group" if "group" in names else None)
        numbers = None if group is None else columns[group].to_numpy()
        return cls(sides[0], sides[1], numbers, engine=engine)

    @property
    def _core(self) -> _lensmith.Pairs:
        if self._made is None:
            assert self._parent is not None and self._rows is not None
            self._made = self._parent._core.take(core(self._engine), self._rows.tolist())
            self._parent = None
        return self._made

    @property
    def chosen(self) -> Embeddings:
        """Embeddings of the preferred responses, [n, d]; without a copy but for rows of several files."""
        return self._core.side(core(self._engine), True)

    @property
    def rejected(self) -> Embeddings:
        """Embeddings of the other responses, [n, d]."""
        return self._core.side(core(self._engine), False)

    @property
    def group(self) -> np.ndarray | None:
        """The prompt of each pair, int64 [n], where it is known."""
        numbers = self._core.group
        return None if numbers is None else np.frombuffer(numbers, np.int64)

    @property
    def dim(self) -> int:
        """Values of an embedding, d."""
        return self._parent.dim if self._parent is not None else self._core.dim

    @property
    def dtype(self) -> str:
        """ "float32", "float16" or "bfloat16"."""
        return self._parent.dtype if self._parent is not None else self._core.dtype

    def __len__(self) -> int:
        return len(self._rows) if self._made is None and self._rows is not None else len(self._core)

    def __getitem__(self, rows: Rows) -> PairSet:
        """The pairs with these numbers: a slice without a step of pairs in memory shares it, other rows are copied when first used."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            if start >= stop:
                raise ValueError(f"rows: expected one or more, found {rows} of {len(self)}")
            return self._of(self._core.slice(core(self._engine), start, stop), self._engine)
        if isinstance(rows, slice):
            numbers = np.arange(len(self))[rows]
        elif isinstance(rows, int | np.integer):
            raise TypeError("rows: expected a slice or several numbers; pairs[i:i + 1] is one pair")
        else:
            numbers = _whole_numbers(rows, "rows", mask=len(self))
        wrong = numbers[(numbers < -len(self)) | (numbers >= len(self))]
        if wrong.size:
            raise IndexError(f"rows: expected numbers below {len(self)}, found {wrong[0]}")
        if not numbers.size:
            raise ValueError("rows: expected one or more, found none")
        return self._picked(np.where(numbers < 0, numbers + len(self), numbers))

    def _picked(self, numbers: np.ndarray) -> PairSet:
        picked = self._of(None, self._engine)
        picked._parent, picked._rows = self, numbers
        return picked

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as one safetensors file with tensors ``chosen``, ``rejected`` and, where known, ``group``.

        The file is written under another name and renamed once it is whole.
        """
        self._core.save(core(self._engine), os.fspath(path))

    def torch(self, batch_size: int = 1024, **options: Any) -> Any:
        """A dataset for ``torch.utils.data.DataLoader``; see :func:`lensmith.torch.dataset` for the options."""
        from .torch import dataset

        return dataset(self, batch_size=batch_size, **options)

    def to_hf_dataset(self) -> Any:
        """A ``datasets.Dataset`` with columns ``chosen``, ``rejected`` and, where known, ``group``."""
        datasets = require("datasets", "PairSet.to_hf_dataset()")
        return datasets.Dataset(_arrow(self.chosen, self.rejected, self.group))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Columns ``chosen`` and ``rejected`` of fixed-size lists, and ``group``, for libraries that read Arrow."""
        return _arrow(self.chosen, self.rejected, self.group).__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"PairSet({len(self)} pairs, dim={self.dim}, {self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.chosen, self.rejected, self.group, self._engine)


@dataclass
class Split:
    """Seed, validation and test pairs of one set."""

    #: Pairs to learn from.
    seeds: PairSet
    #: Pairs for early stopping.
    validation: PairSet
    #: Held-out pairs.
    test: PairSet
    #: Rows of the source, int64, under "seeds", "validation" and "test".
    indices: dict[str, np.ndarray] = field(repr=False)


def split(pairs: PairSet, seeds: int = 1000, validation: int = 300, seed: int = 0) -> Split:
    """Cuts pairs at random into seed, validation and test pairs, groups whole: the split that ``lensmith run`` takes.

    Args:
        pairs: The source.
        seeds: Seed pairs; with groups a few more, so that the last group stays whole.
        validation: Validation pairs; what remains are test pairs.
        seed: Another seed gives another split.

    Raises:
        ValueError: No seed pairs or no validation pairs are asked for.
        LensmithError: Too few pairs.
    """
    require_kind(pairs, PairSet, "pairs")
    seeds, validation, seed = whole(seeds, "seeds", 1), whole(validation, "validation", 1), whole(seed, "seed")
    group = pairs.group
    numbers = None if group is None else group.tolist()
    parts = _lensmith.split_rows(len(pairs), numbers, seeds, validation, seed)
    rows = [np.frombuffer(part, np.int64) for part in parts]
    a, b, c = (pairs._picked(part) for part in rows)
    return Split(a, b, c, dict(zip(("seeds", "validation", "test"), rows, strict=True)))


def _whole_numbers(values: Any, what: str, mask: int | None = None) -> np.ndarray:
    """A one-dimensional int64 array; with `mask` also the places of what is true in so many values."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{what}: expected whole numbers [n], found {type(values).__name__}: {error}") from None
    if array.dtype == bool and mask is not None:
        if array.shape != (mask,):
            raise IndexError(f"{what}: expected a mask of {mask} values, found shape {list(array.shape)}")
        return np.flatnonzero(array)
    if isinstance(values, list | tuple) and not values:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{what}: expected whole numbers [n], found {array.dtype} of shape {list(array.shape)}")
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise ValueError(f"{what}: expected numbers below 2^63, found {array.max()}")
    return array.astype(np.int64)


def _arrow(chosen: Embeddings, rejected: Embeddings, group: np.ndarray | None) -> Any:
    """A pyarrow table over the same memory."""
    pa = require("pyarrow", "Arrow export")

    def column(rows: Embeddings) -> Any:
        if rows.dtype == "bfloat16":
            raise TypeError("Arrow has no bfloat16: make the pairs as float32 or float16")
        values = rows.numpy()
        kind = pa.float32() if rows.dtype == "float32" else pa.float16()
        flat = pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(values)])
        return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])

    columns = {"chosen": column(chosen), "rejected": column(rejected)}
    if group is not None:
        columns["group"] = pa.array(group)
    return pa.table(columns)


def _matrix(pa: Any, column: Any, name: str) -> np.ndarray:
    """A column of lists as rows, over the same memory where it is in one piece."""
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([])])
    if array.null_count:
        raise ValueError(f"{name}: expected no nulls, found {array.null_count}")
    if not len(array):
        raise ValueError(f"{name}: expected one or more rows, found none")
    if not pa.types.is_fixed_size_list(array.type) and not pa.types.is_list(array.type):
        raise ValueError(f"{name}: expected lists of numbers, found {array.type}")
    values = array.flatten()
    if values.null_count:
        raise ValueError(f"{name}: expected no nulls in its lists, found {values.null_count}")
    lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(f"{name}: expected lists of one length, found lengths {lengths[0]} to {lengths[-1]}")
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    if numbers.dtype == np.float64:
        numbers = numbers.astype(np.float32)
    return numbers.reshape(len(array), -1)


def _unpickle(chosen: Embeddings, rejected: Embeddings, group: np.ndarray | None, engine: Engine | None) -> PairSet:
    return PairSet(chosen, rejected, group, engine=engine)
