"""A folder of shards that is filled one shard at a time, and can be gone on with after a crash.

A shard is a safetensors file that gets its name when it is whole and on the disk. `embed.json` says what the
shards follow from; `manifest.json` lists them for lensmith's own commands, which refuse a folder that is not
complete and verify the checksums that stand in each shard's header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .._files import whole_file
from .._optional import require

SETTINGS = "embed.json"
MANIFEST = "manifest.json"
LOCK = ".embed.lock"
FORMAT = 1
#: The metadata entry with a digest of each prompt's responses.
MADE_OF = "responses_xxh3"
#: What shards' names start with.
KINDS = ("pairs", "candidates", "embeddings")
#: Tensors begin at a multiple of this in a shard, so that a mapped file is aligned.
ALIGN = 4096
MAX_HEADER = 100_000_000
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}


def checksum(*parts: Any) -> str:
    """xxh3-128 of bytes, as 32 hexadecimal digits."""
    digest = require("xxhash", "writing a folder of shards").xxh3_128()
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())


def digest_of(said: list[str]) -> str:
    """xxh3-64 of texts, each behind its length as 8 bytes, as 16 hexadecimal digits.

    `lensmith best-of-n --select` takes the same of the responses that it is given.
    """
    digest = require("xxhash", "lm.embed(out=...)").xxh3_64()
    for text in said:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return str(digest.hexdigest())


def compact(value: Any) -> bytes:
    """JSON in one line, keys sorted: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def tensor_bytes(tensor: Any) -> memoryview:
    """The bytes of a tensor's values, in rows; bfloat16 too, which NumPy lacks."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def write_shard(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Writes torch tensors as one shard, whole or not at all, and gives its record for the manifest.

    The header's entries are in a fixed order, so that equal tensors give equal files.
    """
    payload = {name: tensor_bytes(tensor) for name, tensor in tensors.items()}
    digests = {name: checksum(data) for name, data in payload.items()}
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = TYPES[str(tensor.dtype).removeprefix("torch.")]
        offsets = [end, end + len(payload[name])]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]

    def header(own: str) -> bytes:
        sums = {f"xxh3.{name}": digest for name, digest in digests.items()}
        texts = dict(sorted((dict(metadata) | sums | {"xxh3": own}).items()))
        text = json.dumps({"__metadata__": texts} | entries, separators=(",", ":")).encode()
        text = text.ljust(-(-(8 + len(text)) // ALIGN) * ALIGN - 8)
        return len(text).to_bytes(8, "little") + text

    head = header(checksum(header("0" * 32)))
    with whole_file(path) as file:
        file.write(head)
        for values in payload.values():
            file.write(values)
    rows = next(iter(tensors.values())).shape[0]
    return {"file": path.name, "rows": rows, "bytes": len(head) + end, "tensors": digests}


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file whose length agrees with it; raises ValueError for any other file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        return _header(file, path, size)


def _header(file: BinaryIO, path: Path, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise ValueError(f"{path}: expected a safetensors file, found {size} bytes without its header")
    try:
        header: dict[str, Any] = json.loads(file.read(length))
        end = max(info["data_offsets"][1] for name, info in header.items() if name != "__metadata__")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a safetensors header, found something else: {error}") from None
    if size != 8 + length + end:
        raise ValueError(f"{path}: expected {8 + length + end} bytes as its header says, found {size}")
    return header


def record_of(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """A shard's record for the manifest, from its header."""
    tensors = [name for name in header if name != "__metadata__"]
    sums = {name: header["__metadata__"][f"xxh3.{name}"] for name in tensors}
    rows = header[tensors[0]]["shape"][0]
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "tensors": sums}


class Folder:
    """A folder that one process at a time fills with shards; a context manager that holds its lock.

    Opening it raises FileExistsError where something else lies there, ValueError where it was begun with
    other settings, and BlockingIOError where another process is writing.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        settings: dict[str, Any],
        made_with: dict[str, str],
        rows: int,
        overwrite: bool,
    ) -> None:
        self.path, self.kind, self.settings, self.rows = path, kind, settings, rows
        self.fingerprint = checksum(compact(settings))
        self.made_with = made_with
        self.records: list[dict[str, Any]] = []
        self.truncated = 0
        require("xxhash", "lm.embed(out=...)")
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path}: expected a folder or nothing, found a file: name another --out")
        path.mkdir(parents=True, exist_ok=True)
        self._lock: BinaryIO | None = None
        self._take_lock()
        try:
            self._open(overwrite)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        import fcntl

        self._lock = open(self.path / LOCK, "ab")  # noqa: SIM115, it stays open as long as the lock is held
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BlockingIOError(
                f"{self.path}: another process is writing embeddings there: wait for it"
            ) from None
        except OSError:
            pass  # The file system has no locks.

    def _open(self, overwrite: bool) -> None:
        stated = self.path / SETTINGS
        if overwrite and stated.exists():
            # The settings last: as long as they are there, what is left after a crash is known as ours.
            for file in [*self._ours(), self.path / MANIFEST, stated]:
                file.unlink(missing_ok=True)
        if stated.exists():
            self._compare(stated)
            if not (self.path / MANIFEST).exists():
                self._state(complete=False)
        else:
            others = sorted(
                p.name for p in self.path.iterdir() if p.suffix == ".safetensors" or p.name == MANIFEST
            )
            if others:
                hint = "name another folder"
                raise FileExistsError(
                    f"{self.path}: expected an empty folder, found {others[0]} and no {SETTINGS}: {hint}"
                )
            self._state(complete=False)

    def _ours(self) -> list[Path]:
        names = [
            name.format(kind) for kind in KINDS for name in ("{}-*.safetensors", ".{}-*.safetensors.tmp")
        ]
        return [path for name in names for path in self.path.glob(name)]

    def _compare(self, stated: Path) -> None:
        try:
            found = json.loads(stated.read_bytes())
            settings, self.made_with = dict(found["settings"]), dict(found["made_with"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{stated}: expected the settings of embeddings, found something else: {error}"
            ) from None
        for name in [*self.settings, *(name for name in settings if name not in self.settings)]:
            before, now = settings.get(name), self.settings.get(name)
            if before != now:
                raise ValueError(
                    f"{self.path}: {name} was {before!r} when these embeddings were begun, and is {now!r} "
                    f"now: use the same {name} to go on, name another folder, or replace them with "
                    "overwrite=True (--overwrite)"
                )

    def _state(self, complete: bool) -> None:
        """Writes both lists: the manifest last when it is complete, first when it is not."""
        stated = {
            "format": FORMAT,
            "complete": complete,
            "settings": self.settings,
            "made_with": self.made_with,
        }
        if complete:
            stated |= {"shards": len(self.records), "truncated_texts": self.truncated}
        layout = {"layout": self.kind, "shard_rows": self.settings["shard_rows"], "sources": []}
        settings = {"import": layout, "embed": self.settings}
        manifest = {
            "format": FORMAT,
            "complete": complete,
            "fingerprint": checksum(compact(settings)),
            "settings": settings,
            "pairs": self.rows,
            "shard_rows": self.settings["shard_rows"],
            "part": None,
            "shards": self.records,
        }
        files = [(SETTINGS, stated), (MANIFEST, manifest)]
        for name, value in files:
            text = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
            if not (self.path / name).exists() or (self.path / name).read_bytes() != text:
                with whole_file(self.path / name) as file:
                    file.write(text)

    def shard(self, index: int) -> Path:
        """Where a shard lies."""
        return self.path / f"{self.kind}-{index:05}.safetensors"

    def has(self, index: int, digest: str) -> bool:
        """Whether a shard of rows with this digest is there; takes note of it if so."""
        path = self.shard(index)
        if not path.exists():
            return False
        try:
            header = read_header(path)
            metadata = header["__metadata__"]
            if (metadata["embed"], metadata["rows_sha256"]) != (self.fingerprint, digest):
                raise ValueError(
                    f"{path}: expected embeddings of this data set and these settings, found others"
                )
            record, truncated = record_of(path, header), int(metadata["truncated"])
        except (ValueError, KeyError) as error:
            what = (
                str(error)
                if str(path) in str(error)
                else f"{path}: it is no shard of these embeddings ({error})"
            )
            raise ValueError(f"{what}: delete this file, and run again to make it anew") from None
        self.records.append(record)
        self.truncated += truncated
        return True

    def write(
        self,
        index: int,
        tensors: Mapping[str, Any],
        digest: str,
        truncated: int,
        said: list[list[str]] | None = None,
    ) -> None:
        """Writes the next shard; of best-of-N sets with what the responses to each prompt say."""
        metadata = {"embed": self.fingerprint, "rows_sha256": digest, "truncated": str(truncated)}
        if said is not None:
            metadata[MADE_OF] = "".join(digest_of(texts) for texts in said)
        self.records.append(write_shard(self.shard(index), tensors, metadata))
        self.truncated += truncated

    def finish(self) -> None:
        """Says that all shards are there."""
        self._state(complete=True)

    def close(self) -> None:
        """Gives the folder's lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
