"""Data sets of Ray Data as folders of lensmith.

Ray runs a write task again whose worker, node or result was lost, and nobody can tell it from the first. So a task writes
into a folder of its own under names that no other attempt has, and tells what it wrote. Ray hands over one answer for each
task; the driver gives those files their names, lists them in a manifest, and removes what is left. The manifest says
"complete": false until then, so that nobody takes half of a folder for the whole.
"""

# Ray is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import ray
from ray.data.datasource import Datasink

from .._engine import Engine, whole
from .._files import sync_folder, whole_file
from .._pairs import PairSet
from ..embed._folder import FORMAT, MANIFEST, checksum, compact, read_header, record_of
from ._columns import matrix, require_columns
from ._nodes import Place, failure, on_this_node

#: Bytes of a shard where `shard_rows` does not say otherwise.
_SHARD_BYTES = 256 << 20
#: As many as five digits count.
_MOST_SHARDS = 100_000
_STAGING = ".ray-"
_LOCK = ".ray.lock"


def write_pairs(
    dataset: ray.data.Dataset,
    out: str | os.PathLike[str],
    *,
    chosen: str = "chosen",
    rejected: str = "rejected",
    group: str | None = None,
    order: str | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a data set as a folder of shards that lensmith reads as pairs, in the order of the data set. Every row is there
    once, whatever Ray ran twice.

    A write that was killed starts anew when it is called again, for a data set need not give the same rows twice.

    Args:
        dataset: Rows with two columns of embeddings: lists of d numbers, float32 or float16, or tensors.
        out: The folder, on a file system that all nodes share.
        chosen: Name of the column of preferred responses.
        rejected: Name of the column of the others.
        group: Name of the int64 column of prompts; by default ``group``, where there is one.
        order: Name of a column of whole numbers, each once, as ``pair`` of :func:`read_pairs`: rows are written in its order,
            and held against it.
        shard_rows: Rows of every shard but the last; by default shards follow the blocks, of about 256 MiB at most.
        overwrite: Whether to replace what this function wrote before.

    Returns:
        {"out", "pairs", "shards", "bytes"}.

    Raises:
        LensmithError: A folder that holds something else or that another driver writes, a column that is missing, values
            that are not finite (with the node), numbers of ``order`` that are there twice.
    """
    sink = PairsDatasink(
        out,
        chosen=chosen,
        rejected=rejected,
        group=group,
        order=order,
        shard_rows=shard_rows,
        overwrite=overwrite,
    )
    if shard_rows is not None:
        dataset = dataset.repartition(target_num_rows_per_block=sink.shard_rows, strict=True)
    # Else Ray puts blocks together as they come, and rows of one shard would belong between those of another.
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        dataset.write_datasink(sink)
    finally:
        options.preserve_order = before
    assert sink.written is not None
    return sink.written


class PairsDatasink(Datasink[list[dict[str, Any]]]):
    """What :func:`write_pairs` writes to; for ``Dataset.write_datasink`` with options of your own.

    There the rows of a shard are those of a block, or fewer: ``shard_rows`` is the most. Shards follow each other by
    ``order``, else as Ray's execution option ``preserve_order`` has it.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        chosen: str = "chosen",
        rejected: str = "rejected",
        group: str | None = None,
        order: str | None = None,
        shard_rows: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out).absolute()
        self.shard_rows = None if shard_rows is None else whole(shard_rows, "shard_rows", 1)
        #: What was written, once it is.
        self.written: dict[str, Any] | None = None
        self._sides, self._group, self._order = (chosen, rejected), group, order
        self._overwrite = bool(overwrite)
        self._staging = self.out / f"{_STAGING}{uuid.uuid4().hex}"
        self._place = Place("cpu", 1)
        self._lock: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The lock is the driver's.
        return self.__dict__ | {"_lock": None}

    def get_name(self) -> str:
        """What Ray calls the tasks."""
        return "LensmithPairs"

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Takes the folder, on the driver, before anything is written."""
        if self.out.exists() and not self.out.is_dir():
            raise failure("Exists", f"{self.out}: expected a folder or nothing, found a file")
        self.out.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            names = getattr(schema, "names", None)
            if names is not None:
                wanted = [*self._sides, *filter(None, [self._group, self._order])]
                with _argument_errors():
                    require_columns(list(names), wanted)
            self._empty()
            self._state([], False)
            self._staging.mkdir()
        except BaseException:
            self._give_lock_back()
            raise

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[dict[str, Any]]:
        """Writes shards under names of this attempt; gives the record of each."""
        with on_this_node(f"writing to {self.out}"):
            self._place.require_version()
            attempt = uuid.uuid4().hex
            with self._place.engine() as engine:
                return [
                    self._write_shard(engine, rows, self._staging / f"{attempt}-{i}.safetensors")
                    for i, rows in enumerate(self._shards(blocks))
                ]

    def _shards(self, blocks: Iterable[Any]) -> Iterator[pa.Table]:
        for block in blocks:
            table = block if isinstance(block, pa.Table) else pa.Table.from_pandas(block, preserve_index=False)
            rows = self.shard_rows or max(1, _SHARD_BYTES * table.num_rows // max(1, table.nbytes))
            for start in range(0, table.num_rows, rows):
                yield table.slice(start, rows)

    def _write_shard(self, engine: Engine, table: pa.Table, path: Path) -> dict[str, Any]:
        bounds = None
        if self._order is not None:
            require_columns(table.column_names, [self._order])
            numbers = table[self._order].to_numpy()
            if numbers.dtype.kind not in "iu":
                raise ValueError(f"{self._order}: expected whole numbers, found {table[self._order].type}")
            if (numbers[:-1] > numbers[1:]).any():
                places = np.argsort(numbers, kind="stable")
                table, numbers = table.take(places), numbers[places]
            _require_once(self._order, numbers[:-1], numbers[1:])
            bounds = [int(numbers[0]), int(numbers[-1])]
        group = self._group or ("group" if "group" in table.column_names else None)
        groups = None
        if group is not None:
            require_columns(table.column_names, [group])
            groups = table[group].to_numpy()
        chosen, rejected = (matrix(table, side) for side in self._sides)
        PairSet(chosen, rejected, groups, engine=engine).save(path)
        # Read from the file: the engine computed its checksums.
        return record_of(path, read_header(path)) | {"bounds": bounds}

    def on_write_complete(self, write_result: Any) -> None:
        """Gives the shards their names and lists them, on the driver."""
        pieces = [piece for returned in write_result.write_returns for piece in returned or []]
        rows = sum(piece["rows"] for piece in pieces)
        if not rows:
            raise failure("TooFew", f"{self.out}: expected one or more rows, found none")
        if rows != write_result.num_rows:
            raise failure("Incomplete", f"{self.out}: expected {write_result.num_rows} rows, found {rows}")
        if len(pieces) > _MOST_SHARDS:
            raise failure(
                "InvalidArgument",
                f"shard_rows: expected at most {_MOST_SHARDS} shards, found {len(pieces)}: make larger ones",
            )
        if self._order is not None:
            pieces.sort(key=lambda piece: tuple(piece["bounds"]))
            ends = [(a["bounds"][1], b["bounds"][0]) for a, b in itertools.pairwise(pieces)]
            _require_once(self._order, *np.array(ends, np.int64).reshape(-1, 2).T)
        records = []
        for number, piece in enumerate(pieces):
            name = f"pairs-{number:05}.safetensors"
            os.replace(self._staging / piece["file"], self.out / name)
            records.append({key: piece[key] for key in ("rows", "bytes", "tensors")} | {"file": name})
        sync_folder(self.out)
        self._state(records, True)
        self._remove_staging()
        self._give_lock_back()
        size = sum(record["bytes"] for record in records)
        self.written = {"out": str(self.out), "pairs": rows, "shards": len(records), "bytes": size}

    def on_write_failed(self, error: Exception) -> None:
        """Removes what was written; the folder stays marked as not complete."""
        if self._lock is not None:
            self._remove_staging()
            self._give_lock_back()

    def _take_lock(self) -> None:
        self._lock = open(self.out / _LOCK, "ab")  # noqa: SIM115, it stays open as long as the lock is held
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._give_lock_back()
            raise failure("Busy", f"{self.out}: another driver is writing here") from None
        except OSError:
            pass  # The file system has no locks.

    def _give_lock_back(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _empty(self) -> None:
        """Removes what an earlier write left, if that may go."""
        manifest = self.out / MANIFEST
        found = self._found(manifest)
        if found is None:
            others = sorted(path.name for path in self.out.iterdir() if path.suffix in (".safetensors", ".json"))
            if others:
                raise failure("Exists", f"{self.out}: expected an empty folder, found {others[0]}: name another")
        elif found["complete"] and not self._overwrite:
            hint = "overwrite=True replaces it"
            raise failure("Exists", f"{manifest}: expected no pairs here, found {found['pairs']}: {hint}")
        else:
            # Marked first: a reader must not take for whole what is being removed.
            self._state([], False)
            for path in self.out.glob("pairs-*.safetensors"):
                path.unlink()
        self._remove_staging()

    def _found(self, manifest: Path) -> dict[str, Any] | None:
        """The manifest of an earlier write; None where there is none."""
        if not manifest.exists():
            return None
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            found = json.loads(manifest.read_bytes())
            if "ray" in found["settings"]:
                return dict(found)
        raise failure("Exists", f"{manifest}: expected a folder of write_pairs(), found another: name another folder")

    def _remove_staging(self) -> None:
        for path in self.out.glob(f"{_STAGING}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _state(self, records: list[dict[str, Any]], complete: bool) -> None:
        """Writes the manifest, in the layout of an import."""
        rows = max((record["rows"] for record in records), default=1)
        layout: dict[str, Any] = {"layout": "pairs", "shard_rows": rows, "sources": []}
        settings = {"import": layout, "ray": {"order": self._order}}
        order = ("file", "rows", "bytes", "tensors")
        manifest = {
            "format": FORMAT,
            "complete": complete,
            "fingerprint": checksum(compact(settings)),
            "settings": settings,
            "pairs": sum(record["rows"] for record in records),
            "shard_rows": rows,
            "part": None,
            "shards": [{key: record[key] for key in order} for record in records],
        }
        with whole_file(self.out / MANIFEST) as file:
            file.write((json.dumps(manifest, indent=2) + "\n").encode())


def _require_once(order: str, earlier: np.ndarray, later: np.ndarray) -> None:
    """Raises LensmithError unless each number is above the one before it."""
    wrong = np.flatnonzero(earlier >= later)
    if wrong.size:
        raise failure(
            "InvalidArgument",
            f"{order}: expected each number once, in the order of the data set, found {later[wrong[0]]} twice or too late: "
            f"name another column, or write dataset.sort({order!r})",
        )


@contextlib.contextmanager
def _argument_errors() -> Iterator[None]:
    """ValueError as LensmithError."""
    try:
        yield
    except ValueError as error:
        raise failure("InvalidArgument", str(error)) from None


