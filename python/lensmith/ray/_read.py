"""Synthetic pairs as a data set of Ray Data, made where they are read."""

# Ray is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from .._engine import text, whole
from .._pairs import _arrow
from .._synthesis import SyntheticPairs
from ._nodes import Place, RecipeFile, Resources, on_this_node, ray_options

#: Bytes of a block where Ray's context sets none.
_BLOCK_BYTES = 128 << 20
_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


def read_pairs(
    recipe: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    indices: bool = False,
    allow_outside: bool = False,
    resources: Resources | None = None,
    num_blocks: int | None = None,
) -> ray.data.Dataset:
    """The pairs of a recipe as a ``ray.data.Dataset``; each block is made by the task that reads it.

    A block that is lost is made again, to the same bits.

    Args:
        recipe: A ``recipe.json`` or its folder, at a path that every node has, as its seeds and its VAE.
        dtype: Of the embeddings: "float32" or "float16"; Arrow has no bfloat16.
        indices: Whether there is a column ``pair`` with the numbers of the pairs.
        allow_outside: Whether the recipe may name files that lie neither around it nor in the working folder.
        resources: Of a read task, as in {"CPU": 4, "GPU": 1}; by default {"CPU": 1}.
        num_blocks: How many tasks read; by default Ray's choice. Blocks hold as many pairs as fit
            ``DataContext.target_max_block_size``, so that a task may give several.

    Returns:
        Columns ``chosen`` and ``rejected``, fixed-size lists [d] of float32 or float16, and perhaps ``pair``, int64.

    Raises:
        LensmithError: Here for a recipe that cannot be read; when blocks are made, with the node, for seeds or a VAE that
            are missing or others.
    """
    source = RecipeDatasource(recipe, dtype=dtype, indices=indices, allow_outside=allow_outside, resources=resources)
    blocks = None if num_blocks is None else whole(num_blocks, "num_blocks", 1)
    return ray.data.read_datasource(source, override_num_blocks=blocks, **ray_options(resources))


class RecipeDatasource(Datasource):
    """What :func:`read_pairs` reads; for ``ray.data.read_datasource`` with options of your own."""

    def __init__(
        self,
        recipe: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        indices: bool = False,
        allow_outside: bool = False,
        resources: Resources | None = None,
    ) -> None:
        super().__init__()
        self._dtype = text(dtype, "dtype", ("float32", "float16"))
        self._indices = bool(indices)
        self._source = RecipeFile.read(recipe, allow_outside)
        self._place = Place.of(resources)
        row = pa.list_(_TYPES[dtype], self._source.dim)
        numbers = [("pair", pa.int64())] if self._indices else []
        self._schema = pa.schema([("chosen", row), ("rejected", row), *numbers])
        self._row_bytes = 2 * self._source.dim * np.dtype(dtype).itemsize + 8 * self._indices

    def get_name(self) -> str:
        """What Ray calls the tasks."""
        return "LensmithPairs"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks."""
        return self._source.pairs * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Tasks for stretches of equal length, each of which gives blocks of equal bytes."""
        context = data_context or ray.data.DataContext.get_current()
        block = max(1, (context.target_max_block_size or _BLOCK_BYTES) // self._row_bytes)
        pairs = self._source.pairs
        count = max(1, min(parallelism, pairs))
        cuts = [i * pairs // count for i in range(count + 1)]
        tasks = []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            about = BlockMetadata(
                num_rows=stop - start,
                size_bytes=(stop - start) * self._row_bytes,
                input_files=None,
                exec_stats=None,
            )
            # Not `self`, which would hold every task.
            make = _Stretch(self._source, self._place, self._dtype, self._indices, start, stop, block)
            tasks.append(ReadTask(make, about, schema=self._schema, per_task_row_limit=per_task_row_limit))
        return tasks


class _Stretch:
    """Makes pairs `start` to `stop`, `block` at a time."""

    def __init__(
        self,
        source: RecipeFile,
        place: Place,
        dtype: str,
        indices: bool,
        start: int,
        stop: int,
        block: int,
    ) -> None:
        self._opened = (source, place, dtype)
        self._indices, self._start, self._stop, self._block = indices, start, stop, block

    def __call__(self) -> Iterator[pa.Table]:
        for first in range(self._start, self._stop, self._block):
            last = min(first + self._block, self._stop)
            with on_this_node(f"pairs {first} to {last}"):
                batch = _open(*self._opened)[first:last]
                table = _arrow(batch.chosen, batch.rejected, None)
            if self._indices:
                table = table.append_column("pair", pa.array(np.arange(first, last, dtype=np.int64)))
            yield table


@lru_cache(maxsize=1)
def _open(source: RecipeFile, place: Place, dtype: str) -> SyntheticPairs:
    """The pairs of a recipe; a worker that makes several blocks reads the seeds once."""
    place.require_version()
    source.require_same()
    return SyntheticPairs.open(
        source.path, dtype=dtype, allow_outside=source.allow_outside, engine=place.engine()
    )
