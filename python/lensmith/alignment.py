"""Data and scripts of the project embedding-based-llm-alignment, on lensmith.

The project (https://github.com/holarissun/embedding-based-llm-alignment) publishes several responses for each
prompt as embeddings and gold rewards, two files a split::

    embd_{res_gen_model}_{embed_model}_{task}_{split}.npy      [prompts, responses, d]
    reward_{res_gen_model}_{embed_model}_{task}_{split}.npy    [prompts, responses, 1]

``open`` finds them in a folder and maps them, so that they may be larger than memory::

    data = alignment.open("embd/", task="Harmless")
    rm = lm.RewardModel.fit(data.pairs(10_000, seed=6))
    print(rm.best_of_n(data.test.candidates, data.test.gold))

``load_embd_data``, ``pair_annotate``, ``BT_MLP``, ``calc_bon`` and ``calc_spearmanr`` have the names and
arguments of the project's README. Where a docstring names step5_train_rms.py or step6_eval_rms.py, it means
those of the same author's https://github.com/holarissun/RewardModelingBeyondBradleyTerry.

Errors are FileNotFoundError for files that are not there, TypeError for a wrong dtype, and ValueError for a
wrong shape, a damaged file, and NaN, which is named by file, prompt, response and value.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._files import sync_folder, whole_file

if TYPE_CHECKING:
    from lensmith import PairSet, RewardModel

__all__ = [
    "BT_MLP",
    "Data",
    "Responses",
    "bon_draws",
    "calc_bon",
    "calc_spearmanr",
    "load_embd_data",
    "open",
    "pair_annotate",
    "setups",
]

PathLike = str | os.PathLike[str]
Array = NDArray[Any]
Rows = NDArray[np.int64]
Score = Callable[[Array], ArrayLike]

#: Bytes of embeddings that are held at a time.
_BLOCK_BYTES = 16 << 20
#: Bytes of a shard where `shard_rows` does not say otherwise.
_SHARD_BYTES = 256 << 20
#: The payload of a shard starts at a multiple of a page.
_PAGE = 4096
#: The numbers of candidates in step6_eval_rms.py.
_SIZES = (2, 5, 10, 30, 50, 100, 300, 500)


# ---------------------------------------------------------------- files


def _map(path: PathLike, what: str) -> np.memmap[Any, Any]:
    """Maps a .npy file of numbers read-only, after a look at its header and length."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            # Versions 2 and 3 differ in the encoding of field names alone, which plain arrays do not have.
            first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError as error:
            file.seek(0)
            found = _kind_of(file.read(64))
            raise ValueError(f"{path}: expected a .npy file of {what}, found {found} ({error})") from None
        header, length = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.hasobject:
        raise TypeError(
            f"{path}: expected numbers, found pickled Python objects, which are not read since reading them "
            "can run code from the file: save np.stack(rows).astype(np.float32)"
        )
    if fortran and sum(axis > 1 for axis in shape) > 1:
        raise ValueError(
            f"{path}: expected C order, found Fortran order, where a row is scattered over the file: save "
            "np.ascontiguousarray(x)"
        )
    expected = header + math.prod(shape) * dtype.itemsize
    if length != expected:
        fault = "truncated" if length < expected else "too long"
        raise ValueError(
            f"{path}: expected {expected} bytes for {shape} of {dtype}, found {length}: the file is {fault}; "
            "download it or save it again"
        )
    if 0 in shape or not shape:
        raise ValueError(f"{path}: expected {what}, found the shape {shape}")
    return cast("np.memmap[Any, Any]", np.load(path, mmap_mode="r", allow_pickle=False))


def _kind_of(start: bytes) -> str:
    """What a file that starts like this is, in words."""
    if not start:
        return "an empty file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a page of HTML, which download services give in place of a large file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (git lfs pull fetches the file)"
    if start.startswith(b"PK\x03\x04"):
        return "a zip, as .npz files are"
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return "a damaged header"
    return f"a file that starts with {start[:8]!r}"


def _two_axes(rewards: Array, name: str) -> Array:
    """Rewards [P, N, 1] or [P, N] as [P, N], without a copy."""
    if rewards.ndim == 3 and rewards.shape[2] == 1:
        return rewards.reshape(rewards.shape[:2])
    if rewards.ndim != 2:
        raise ValueError(f"{name}: expected the shape [prompts, responses, 1], found {rewards.shape}")
    return rewards


def _require_finite(values: Array, name: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        prompt, response = (int(at) for at in bad[0])
        found = values[prompt, response]
        raise ValueError(
            f"{name}: prompt {prompt}, response {response}: expected a finite number, found {found}"
        )


class Responses:
    """The responses of a split, mapped read-only: embeddings [P, N, d] and gold rewards [P, N].

    Args:
        embeddings: A .npy file [P, N, d] of float16, float32 or float64.
        rewards: A .npy file [P, N, 1] or [P, N] of floats or integers, which is small and checked at once.

    Raises:
        FileNotFoundError: A file that is not there.
        TypeError: Another dtype, or pickled objects.
        ValueError: Shapes that do not fit, a damaged file, a reward that is not finite.
    """

    def __init__(self, embeddings: PathLike, rewards: PathLike) -> None:
        self.paths = Path(embeddings), Path(rewards)
        missing = [str(path) for path in self.paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"expected embeddings and rewards in two files, found no file {' and no file '.join(missing)}"
            )
        self._stats = self._look()
        self._embeddings = _map(embeddings, "embeddings [prompts, responses, d]")
        dtype = self._embeddings.dtype
        if dtype.kind != "f" or dtype.itemsize > 8:
            hint = " (bfloat16 saved by NumPy?)" if dtype == np.dtype("V2") else ""
            raise TypeError(
                f"{embeddings}: expected float16, float32 or float64, found {dtype}{hint}: save "
                "x.astype(np.float32)"
            )
        if self._embeddings.ndim != 3:
            raise ValueError(
                f"{embeddings}: expected the shape [prompts, responses, d], found {self._embeddings.shape}"
            )
        gold = _two_axes(_map(rewards, "rewards [prompts, responses, 1]"), str(rewards))
        if gold.dtype.kind not in "fiu" or gold.dtype.itemsize > 8:
            raise TypeError(f"{rewards}: expected floats or integers, found {gold.dtype}")
        if gold.shape != self._embeddings.shape[:2]:
            raise ValueError(
                f"{rewards}: expected rewards of {self._embeddings.shape[:2]} prompts and responses, as "
                f"{embeddings} has, found {gold.shape}"
            )
        _require_finite(gold, str(rewards))
        self._gold = gold if gold.dtype.kind == "f" else gold.astype(np.float64)

    def _look(self) -> list[tuple[int, int]]:
        return [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in self.paths)]

    def __reduce__(self) -> tuple[Any, ...]:
        return Responses, self.paths

    @property
    def candidates(self) -> Array:
        """Embeddings [P, N, d] as they are in the file, mapped."""
        return self._embeddings

    @property
    def gold(self) -> Array:
        """Gold rewards [P, N] as they are in the file, mapped; integers become float64."""
        return self._gold

    @property
    def shape(self) -> tuple[int, int, int]:
        """Prompts P, responses of each N, values of an embedding d."""
        return cast("tuple[int, int, int]", self._embeddings.shape)

    @property
    def dtype(self) -> str:
        """What pairs and shards hold: float16 where the file has it, else float32."""
        return "float16" if self._embeddings.dtype.itemsize == 2 else "float32"

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        prompts, responses, dim = self.shape
        size = f"{self._embeddings.dtype}, {self._embeddings.nbytes / 2**30:.2f} GiB"
        return f"<Responses {self.paths[0]}: {prompts} prompts x {responses} responses x {dim}, {size}>"

    # ------------------------------------------------------------ rows

    @property
    def _step(self) -> int:
        """Rows of a block."""
        return max(1, _BLOCK_BYTES // (self.shape[2] * self._embeddings.itemsize))

    def _finite(self, stored: Array, rows: range | Rows, dtype: DTypeLike) -> Array:
        """Embeddings ``stored`` [b, d], these rows of [P * N, d], as ``dtype``; all must be finite."""
        with np.errstate(over="ignore"):
            block = np.asarray(stored).astype(dtype, copy=False)
        finite = np.isfinite(block)
        if not finite.all():
            at, value = np.argwhere(~finite)[0]
            prompt, response = divmod(int(rows[at]), self.shape[1])
            raise ValueError(
                f"{self.paths[0]}: prompt {prompt}, response {response}, value {value}: expected a finite "
                f"number in the range of {np.dtype(dtype)}, found {stored[at, value]}"
            )
        return block

    def _stretch(self, start: int, stop: int, dtype: DTypeLike) -> Array:
        """Rows ``start`` to ``stop``."""
        stored = self._embeddings.reshape(-1, self.shape[2])[start:stop]
        return self._finite(stored, range(start, stop), dtype)

    def _gather(self, rows: Rows, out: Array) -> None:
        """Reads rows into ``out``, in the order of the file.

        They are read, not taken from the map: a page fault at a random place reads many pages ahead.
        """
        order = np.argsort(rows, kind="stable")
        dtype, first = self._embeddings.dtype, self._embeddings.offset
        size = self.shape[2] * dtype.itemsize
        with self.paths[0].open("rb", buffering=0) as file:
            for at in range(0, len(rows), self._step):
                part = order[at : at + self._step]
                stored = np.empty((len(part), self.shape[2]), dtype)
                block = stored.view(np.uint8).data.cast("B")
                for place, row in enumerate(rows[part].tolist()):
                    file.seek(first + row * size)
                    if file.readinto(block[place * size : (place + 1) * size]) != size:
                        raise ValueError(
                            f"{self.paths[0]}: expected row {row}, found the end: the file was cut"
                        )
                out[part] = self._finite(stored, rows[part], out.dtype)

    def blocks(self) -> Iterator[Array]:
        """All embeddings in order, in blocks [b, d] of about 16 MiB: prompt 0, prompt 1, and so on.

        Blocks have the dtype :attr:`dtype`. NaN and infinity raise ValueError.
        """
        rows = self.shape[0] * self.shape[1]
        for start in range(0, rows, self._step):
            yield self._stretch(start, min(start + self._step, rows), self.dtype)

    def check(self) -> None:
        """Reads every embedding; ValueError on the first that is NaN or infinite."""
        for _ in self.blocks():
            pass

    # ------------------------------------------------------------ pairs

    def pairs(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        per_prompt: int = 1,
        annotation_quality: float = 10.0,
        strategy: str = "random",
        prompts: slice | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        scale: float | None = None,
        dtype: str | None = None,
        out: PathLike | None = None,
        shard_rows: int | None = None,
    ) -> PairSet:
        """Preference pairs of these responses, labelled by their gold rewards.

        By default they are the first ``n`` pairs that the project's pair_annotate makes of
        embeddings[prompts] and rewards[prompts] after np.random.seed(seed). Only their rows are read.
        ``group`` is the prompt's number in the file.

        Args:
            n: Pairs; None takes ``per_prompt`` of every prompt.
            seed: Seed of numpy.random.RandomState.
            per_prompt: Pairs of a prompt, drawn evenly, none of them twice. pair_annotate has 10.
            annotation_quality: Of two rewards a and b, a is preferred with probability
                1 / (1 + exp(-annotation_quality (a - b) / scale)); below 0 the higher is always preferred.
                10 is what step5_train_rms.py has; pair_annotate has 0.1, which is close to tossing a coin.
            strategy: "random", two responses of a prompt; or "across-prompts", each of ``n`` prompts
                against any, as step5_train_rms.py draws: without groups, and ``per_prompt`` is 1.
            prompts: A slice or numbers: the prompts that pairs are made of. None takes all.
            scale: None takes the standard deviation of the rewards of ``prompts``, as pair_annotate does.
                step5_train_rms.py has 6.0 for helpful and 1.0 for harmless.
            dtype: As in :meth:`take`.
            out: As in :meth:`take`.
            shard_rows: As in :meth:`take`.
        """
        selected = np.arange(len(self)) if prompts is None else np.arange(len(self))[prompts]
        responses = self.shape[1]
        if selected.ndim != 1 or not len(selected):
            raise ValueError(f"prompts: expected numbers from 0 to {len(self) - 1}, found none")
        for name, value in (("n", n), ("per_prompt", per_prompt)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, found {value}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale: expected a positive number, found {scale}")
        if responses < 2:
            raise ValueError(f"{self.paths[0]}: expected 2 or more responses of a prompt, found {responses}")
        rewards = self._gold if prompts is None else self._gold[selected]
        divisor = np.std(rewards) + 1e-8 if scale is None else scale
        rng = cast(_Random, np.random.RandomState(seed))
        if strategy == "random":
            most = len(selected) * per_prompt if n is None else n
            drawn = _within_prompts(rewards, per_prompt, annotation_quality, divisor, rng, most)
        elif strategy == "across-prompts":
            if per_prompt != 1:
                raise ValueError(f"per_prompt: expected 1 with across-prompts, found {per_prompt}")
            drawn = _across_prompts(rewards[:n], annotation_quality, divisor, rng)
        else:
            raise ValueError(f"strategy: expected 'random' or 'across-prompts', found {strategy!r}")
        if n is not None and len(drawn) < n:
            raise ValueError(
                f"n: expected at most {len(drawn)}, which {len(selected)} prompts of {responses} responses "
                f"give with per_prompt={per_prompt}, found {n}: ask for fewer pairs, more of a prompt, or "
                "more prompts"
            )
        prompt, response = np.divmod(drawn, responses)
        rows = selected[prompt] * responses + response
        group = selected[prompt[:, 0]] if strategy == "random" else None
        drawing = {
            "n": len(drawn),
            "seed": seed,
            "per_prompt": per_prompt,
            "annotation_quality": annotation_quality,
            "scale": float(divisor),
            "strategy": strategy,
        }
        return self._take(rows[:, 0], rows[:, 1], group, dtype, out, shard_rows, drawing)

    def take(
        self,
        chosen: ArrayLike,
        rejected: ArrayLike,
        *,
        group: ArrayLike | None = None,
        dtype: str | None = None,
        out: PathLike | None = None,
        shard_rows: int | None = None,
    ) -> PairSet:
        """The pairs of these rows, where response j of prompt i is row i * N + j.

        Args:
            chosen: Rows of the preferred responses, integers [n].
            rejected: Rows of the others, integers [n].
            group: Which pairs belong together, integers [n].
            dtype: "float32" or "float16". None keeps the file's, and makes float32 of float64.
            out: None gathers the pairs in memory. A folder gets them as safetensors shards, in the memory of
                a block, and the pairs returned are mapped from there. It has its name once it is whole; until
                then the shards are in .NAME.partial beside it. Interrupted, the same call goes on after them;
                once more, it opens the folder.
            shard_rows: Pairs of a shard; None makes shards of about 256 MiB.

        Raises:
            IndexError: A row that is not there.
            FileExistsError: ``out`` is something else, or is being written.
            ValueError: NaN or infinity, a .NAME.partial of another call, files that changed meanwhile.
        """
        return self._take(chosen, rejected, group, dtype, out, shard_rows, {})

    def _take(
        self,
        chosen: ArrayLike,
        rejected: ArrayLike,
        group: ArrayLike | None,
        dtype: str | None,
        out: PathLike | None,
        shard_rows: int | None,
        drawing: dict[str, Any],
    ) -> PairSet:
        from lensmith import PairSet

        sides = {"chosen": self._numbers("chosen", chosen), "rejected": self._numbers("rejected", rejected)}
        n, dim = len(sides["chosen"]), self.shape[2]
        groups = None if group is None else np.ascontiguousarray(group, dtype=np.int64)
        for name, found in (("rejected", sides["rejected"]), ("group", groups)):
            if found is not None and found.shape != (n,):
                raise ValueError(f"{name}: expected {n} integers as in chosen, found the shape {found.shape}")
        stored = _storage(dtype or self.dtype)
        if out is None:
            first, second = (np.empty((n, dim), stored) for _ in sides)
            self._gather(sides["chosen"], first)
            self._gather(sides["rejected"], second)
            return PairSet(first, second, group=groups)

        def side(rows: Rows) -> Callable[[int, int], Iterator[Array]]:
            def read(start: int, stop: int) -> Iterator[Array]:
                for at in range(start, stop, self._step):
                    part = rows[at : min(at + self._step, stop)]
                    block = np.empty((len(part), dim), stored)
                    self._gather(part, block)
                    yield block

            return read

        tensors = [_Tensor(name, stored, (dim,), side(rows)) for name, rows in sides.items()]
        if groups is not None:
            tensors.append(_Tensor("group", np.dtype(np.int64), (), lambda a, b: iter([groups[a:b]])))
        numbers = [*sides.values()] if groups is None else [*sides.values(), groups]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in numbers)).hexdigest()
        self._write(Path(out), "pairs", {"drawing": drawing, "rows": digest}, n, tensors, shard_rows)
        return PairSet.open(os.fspath(out), group=None if groups is None else "group")

    def _numbers(self, name: str, rows: ArrayLike) -> Rows:
        found = np.asarray(rows)
        if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
            raise ValueError(f"{name}: expected one or more integers [n], found {found.dtype} {found.shape}")
        most = self.shape[0] * self.shape[1]
        outside = np.flatnonzero((found < 0) | (found >= most))
        if len(outside):
            at = outside[0]
            raise IndexError(f"{name}[{at}]: expected a row from 0 to {most - 1}, found {found[at]}")
        return np.ascontiguousarray(found, dtype=np.int64)

    # ------------------------------------------------------------ conversion

    def to_shards(self, out: PathLike, *, dtype: str | None = None, shard_rows: int | None = None) -> Path:
        """Writes best-of-N sets for ``lensmith best-of-n`` and ``lensmith run --candidates``.

        Returns the folder. Its shards hold ``candidates`` [prompts, N, d] and ``gold`` [prompts, N],
        ``shard_rows`` prompts each (None: about 256 MiB). Memory, names, going on, and errors are as in
        :meth:`take`.
        """
        prompts, responses, dim = self.shape
        stored = _storage(dtype or self.dtype)
        gold = np.dtype(np.float32) if self._gold.dtype.itemsize <= 4 else np.dtype(np.float64)

        def candidates(start: int, stop: int) -> Iterator[Array]:
            for at in range(start * responses, stop * responses, self._step):
                yield self._stretch(at, min(at + self._step, stop * responses), stored)

        tensors = [
            _Tensor("candidates", stored, (responses, dim), candidates),
            _Tensor("gold", gold, (responses,), lambda a, b: iter([self._gold[a:b].astype(gold)])),
        ]
        self._write(Path(out), "candidates", {}, prompts, tensors, shard_rows)
        return Path(out)

    def _write(
        self,
        out: Path,
        kind: str,
        settings: dict[str, Any],
        rows: int,
        tensors: list[_Tensor],
        shard_rows: int | None,
    ) -> None:
        if shard_rows is not None and shard_rows < 1:
            raise ValueError(f"shard_rows: expected 1 or more, found {shard_rows}")
        row_bytes = sum(tensor.row_bytes for tensor in tensors)
        per_shard = shard_rows or max(1, _SHARD_BYTES // row_bytes)
        sources = [
            {"file": path.name, "bytes": size, "modified_ns": modified}
            for path, (size, modified) in zip(self.paths, self._stats, strict=True)
        ]
        settings = {
            "kind": kind,
            "sources": sources,
            "dtype": str(tensors[0].dtype),
            "rows_in_all": rows,
            "shard_rows": per_shard,
            **settings,
        }

        def unchanged() -> None:
            for path, before, now in zip(self.paths, self._stats, self._look(), strict=True):
                if before != now:
                    raise ValueError(
                        f"{path}: expected the file that was opened, found it changed: open it again"
                    )

        _write_folder(out, kind, settings, rows, per_shard, tensors, unchanged)

    # ------------------------------------------------------------ evaluation

    def score(self, model: Score) -> NDArray[np.float32]:
        """Rewards float32 [P, N] by a reward model, or any function of embeddings [b, d], block by block."""
        rewards = np.empty(self.shape[0] * self.shape[1], np.float32)
        at = 0
        for block in self.blocks():
            found = np.asarray(model(block), np.float32).reshape(-1)
            if len(found) != len(block):
                raise ValueError(f"model: expected {len(block)} rewards of a block, found {len(found)}")
            rewards[at : at + len(block)] = found
            at += len(block)
        return rewards.reshape(self.shape[:2])

    def evaluate(self, model: Score, *, sizes: Sequence[int] = _SIZES, repeats: int = 100) -> dict[str, Any]:
        """The figures of step6_eval_rms.py for a reward model, or any function of embeddings [b, d].

        Args:
            model: What gives rewards.
            sizes: Numbers of candidates; those above N are left out.
            repeats: Draws of the candidates.

        Returns:
            ``best_of_n`` and ``best_of_n_deviation``: {size: mean over the repeats of :func:`bon_draws`, and
            their standard deviation}. ``spearman``: :func:`calc_spearmanr`. ``quantile``: the share of a
            prompt's gold rewards that are at most that of the response ranked first, mean over prompts.
        """
        rewards, gold = self.score(model), np.asarray(self._gold)
        there = [size for size in sizes if size <= self.shape[1]]
        draws = bon_draws(rewards, gold, there, repeats)
        best = np.take_along_axis(gold, rewards.argmax(axis=1)[:, None], axis=1)
        return {
            "best_of_n": dict(zip(there, draws.mean(axis=0).tolist(), strict=True)),
            "best_of_n_deviation": dict(zip(there, draws.std(axis=0).tolist(), strict=True)),
            "spearman": calc_spearmanr(rewards, gold),
            "quantile": float((gold <= best).mean()),
        }


class Data:
    """The splits of a setup: one task, the model that wrote the responses, the model that embedded them.

    Made by ``open``. ``folder`` and ``name`` tell where it is, ``splits`` what is there.
    """

    def __init__(self, folder: Path, name: str, splits: tuple[str, ...]) -> None:
        self.folder, self.name, self.splits = folder, name, splits

    def split(self, name: str) -> Responses:
        """Opens a split; FileNotFoundError names the files that were looked for."""
        return Responses(*_paths(self.folder, self.name, name))

    @cached_property
    def train(self) -> Responses:
        """The split ``train``, opened when it is first used."""
        return self.split("train")

    @cached_property
    def test(self) -> Responses:
        """The split ``test``, opened when it is first used."""
        return self.split("test")

    def pairs(self, n: int | None = None, **options: Any) -> PairSet:
        """Preference pairs of the split ``train``: those of :meth:`Responses.pairs`."""
        return self.train.pairs(n, **options)

    def __repr__(self) -> str:
        return f"<Data {self.folder / self.name}: {', '.join(self.splits)}>"


def _paths(folder: Path, name: str, split: str) -> tuple[Path, Path]:
    return folder / f"embd_{name}_{split}.npy", folder / f"reward_{name}_{split}.npy"


def setups(folder: PathLike) -> dict[str, tuple[str, ...]]:
    """What is in a folder: names {res_gen_model}_{embed_model}_{task}, each with its splits."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()}: expected a folder with files embd_*.npy, found none")
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("embd_*.npy")):
        name, _, split = path.stem.removeprefix("embd_").rpartition("_")
        if name.count("_") >= 2:
            found.setdefault(name, []).append(split)
    return {name: tuple(splits) for name, splits in found.items()}


def _fits(name: str, wanted: Sequence[str | None]) -> bool:
    """Whether a setup is the wanted one. Models and tasks may have underscores: any cut into three counts."""
    parts = name.split("_")
    for i in range(1, len(parts) - 1):
        for j in range(i + 1, len(parts)):
            cut = ("_".join(parts[:i]), "_".join(parts[i:j]), "_".join(parts[j:]))
            if all(want in (None, part) for want, part in zip(wanted, cut, strict=True)):
                return True
    return False


def open(
    folder: PathLike,
    task: str | None = None,
    res_gen_model: str | None = None,
    embed_model: str | None = None,
) -> Data:
    """Finds the files embd_{res_gen_model}_{embed_model}_{task}_{split}.npy of a setup, rewards beside them.

    Args:
        folder: Where the files are.
        task: Names that the folder leaves no choice of can be left out; upper and lower case may differ.
        res_gen_model: The model that wrote the responses.
        embed_model: The model that embedded them.

    Raises:
        FileNotFoundError: Nothing of these names; the message tells what was looked for and what is there.
        ValueError: Several setups of these names.
    """
    folder = Path(folder)
    there = setups(folder)
    wanted = (res_gen_model, embed_model, task)
    found = [name for name in there if _fits(name, wanted)]
    if not found:
        folded = [None if want is None else want.casefold() for want in wanted]
        found = [name for name in there if _fits(name.casefold(), folded)]
    pattern = "embd_{}_{}_{}_*.npy".format(*(want or "*" for want in wanted))
    if not found:
        listed = f"the setups {', '.join(there)}" if there else "no file embd_*_*_*_*.npy"
        raise FileNotFoundError(f"{folder.absolute()}: looked for {pattern}, found {listed}")
    if len(found) > 1:
        raise ValueError(
            f"{folder.absolute()}: expected one setup {pattern}, found {', '.join(found)}: give task, "
            "res_gen_model and embed_model"
        )
    return Data(folder, found[0], there[found[0]])


# ---------------------------------------------------------------- drawing pairs


class _Random(Protocol):
    """What is drawn from: a RandomState, or the module numpy.random with its own."""

    def rand(self) -> float: ...

    def choice(self, a: int | Array, size: int, replace: bool) -> Array: ...


def _prefers(a: Any, b: Any, quality: float, scale: Any, rng: _Random) -> bool:
    """Whether the annotator prefers reward a to reward b."""
    if quality < 0:
        return bool(a > b)
    with np.errstate(over="ignore"):
        return bool(rng.rand() < 1 / (1 + np.exp(-((a - b) / scale) * quality)))


def _within_prompts(
    rewards: Array, per_prompt: int, quality: float, scale: Any, rng: _Random, most: int
) -> Rows:
    """The first ``most`` pairs of pair_annotate from rewards [P, N]: rows [n, 2] of [P * N], preferred first.

    The order of draws is part of the result. Of a prompt first its pairs, in at most five times as many
    attempts; then for each pair which response comes first, and the label. Pairs are visited as a Python set
    has them.
    """
    prompts, responses = rewards.shape
    rows: list[tuple[int, int]] = []
    for prompt in range(prompts):
        if len(rows) >= most:
            break
        drawn: set[tuple[int, int]] = set()
        for _ in range(5 * per_prompt):
            if len(drawn) == per_prompt:
                break
            j, k = rng.choice(responses, 2, replace=False).tolist()
            drawn.add((min(j, k), max(j, k)))
        first = prompt * responses
        for j, k in drawn:
            a, b = (j, k) if rng.rand() < 0.5 else (k, j)
            if not _prefers(rewards[prompt, a], rewards[prompt, b], quality, scale, rng):
                a, b = b, a
            rows.append((first + a, first + b))
    return np.array(rows[:most], np.int64).reshape(-1, 2)


def _across_prompts(rewards: Array, quality: float, scale: Any, rng: _Random) -> Rows:
    """A pair of each prompt with any prompt, in the order of draws of step5_train_rms.py: rows as above."""
    prompts, responses = rewards.shape
    two = [rng.choice(responses, 2, replace=False) for _ in range(prompts)]
    rows = np.empty((prompts, 2), np.int64)
    for prompt in range(prompts):
        own = rng.choice(two[prompt], 1, replace=False).item()
        other = rng.choice(prompts, 1, replace=False).item()
        response = rng.choice(two[other], 1, replace=False).item()
        pair = other * responses + response, prompt * responses + own
        preferred = _prefers(rewards[other, response], rewards[prompt, own], quality, scale, rng)
        rows[prompt] = pair if preferred else pair[::-1]
    return rows


# ---------------------------------------------------------------- shards

_SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}


class _Tensor:
    """A tensor [rows, *tail] of shards; ``read(start, stop)`` gives these rows in blocks."""

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any],
        tail: tuple[int, ...],
        read: Callable[[int, int], Iterator[Array]],
    ) -> None:
        self.name, self.dtype, self.tail, self.read = name, dtype, tail, read
        self.row_bytes = math.prod(tail) * dtype.itemsize


def _storage(dtype: str) -> np.dtype[Any]:
    if dtype not in ("float32", "float16"):
        raise TypeError(f"dtype: expected 'float32' or 'float16', found {dtype!r}")
    return np.dtype(dtype)


def _header(tensors: list[_Tensor], rows: int) -> tuple[bytes, int]:
    """The header of a safetensors file, padded to whole pages, and the length of the file."""
    entries: dict[str, Any] = {}
    end = 0
    for tensor in tensors:
        start, end = end, end + rows * tensor.row_bytes
        entries[tensor.name] = {
            "dtype": _SAFETENSORS[str(tensor.dtype)],
            "shape": [rows, *tensor.tail],
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % _PAGE)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def _is_done(out: Path, record: str, text: str) -> bool:
    """Whether the folder is there and holds these shards; FileExistsError if it holds something else."""
    if not out.exists():
        return False
    if (out / record).is_file() and (out / record).read_text() == text:
        return True
    raise FileExistsError(f"{out}: expected no such folder, found one of other content: choose another name")


def _write_folder(
    out: Path,
    prefix: str,
    settings: dict[str, Any],
    rows: int,
    per_shard: int,
    tensors: list[_Tensor],
    unchanged: Callable[[], None],
) -> None:
    """Writes shards into .NAME.partial, which gets the name ``out`` when all are there."""
    record, text = "source.json", json.dumps(settings, indent=2) + "\n"
    if _is_done(out, record, text):
        return
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    folder = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{partial}: expected no other writer, found one at work") from None
        # Another writer may have finished while this one looked.
        if _is_done(out, record, text):
            return
        if not (partial / record).is_file():
            with whole_file(partial / record) as file:
                file.write(text.encode())
        found = json.loads((partial / record).read_text())
        for key, value in json.loads(text).items():
            if found.get(key) != value:
                raise ValueError(
                    f"{partial}: expected the shards of this call, found those of another that was "
                    f"interrupted ({key}: {found.get(key)} there, {value} here): remove this folder"
                )
        for number, start in enumerate(range(0, rows, per_shard)):
            stop = min(start + per_shard, rows)
            header, length = _header(tensors, stop - start)
            shard = partial / f"{prefix}-{number:05}.safetensors"
            # It has this name only if it was written to its end.
            if shard.is_file() and shard.stat().st_size == length:
                continue

            with whole_file(shard) as file:
                file.write(header)
                for tensor in tensors:
                    for block in tensor.read(start, stop):
                        file.write(np.ascontiguousarray(block).data.cast("B"))
            unchanged()
        os.rename(partial, out)
        sync_folder(out.parent)
    finally:
        os.close(folder)


# ---------------------------------------------------------------- the names of the project's README


def load_embd_data(
    task: str, res_gen_model: str, embed_model: str, split: str, folder: PathLike = "../embd"
) -> tuple[Array, Array]:
    """Embeddings [P, N, d] and rewards [P, N, 1] of a split, mapped read-only."""
    found = Responses(*_paths(Path(folder), f"{res_gen_model}_{embed_model}_{task}", split))
    return found.candidates, found.gold[:, :, None]


def pair_annotate(
    embeddings: Array,
    rewards: Array,
    annotation_quality: float = 0.1,
    pair_strategy: str = "random",
    pairs_per_prompt: int = 10,
    seed: int | None = None,
) -> tuple[Array, NDArray[np.int32]]:
    """Preference pairs [M, 2, d], the preferred first, and labels int32 [M], all 1.

    They are those of the project's function of this name, held in memory once. Without a ``seed`` they follow
    from the state of numpy.random, as the project's do. ``Responses.pairs`` makes only as many as are wanted.
    """
    if pair_strategy != "random":
        raise ValueError(f"pair_strategy: expected 'random', found {pair_strategy!r}")
    gold = _two_axes(np.asarray(rewards), "rewards")
    if embeddings.ndim != 3 or gold.shape != embeddings.shape[:2]:
        raise ValueError(
            "embeddings, rewards: expected the shapes [prompts, responses, d] and [prompts, responses, 1], "
            f"found {embeddings.shape} and {rewards.shape}"
        )
    rng = cast(_Random, np.random if seed is None else np.random.RandomState(seed))
    most, scale = len(gold) * pairs_per_prompt, np.std(gold) + 1e-8
    rows = _within_prompts(gold, pairs_per_prompt, annotation_quality, scale, rng, most)
    # Side after side in memory, so that comparisons[:, 0] is contiguous.
    sides = np.empty((2, len(rows), embeddings.shape[2]), embeddings.dtype)
    step = max(1, _BLOCK_BYTES // (sides.shape[2] * sides.itemsize))
    for side, numbers in zip(sides, rows.T, strict=True):
        prompts, responses = np.divmod(numbers, gold.shape[1])
        for at in range(0, len(numbers), step):
            side[at : at + step] = embeddings[prompts[at : at + step], responses[at : at + step]]
    return sides.transpose(1, 0, 2), np.ones(len(rows), np.int32)


class BT_MLP:  # noqa: N801
    """A Bradley-Terry reward model with the methods of the project's README.

    Keyword arguments are those of ``RewardModel.fit``; ``model`` is the RewardModel once it is fitted.
    """

    model: RewardModel

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def fit(
        self, comparisons: Array, labels: ArrayLike | None = None, validation: PairSet | None = None
    ) -> BT_MLP:
        """Trains on pairs [M, 2, d], of which the first is preferred where the label is 1, the second where
        it is 0.

        ``labels`` [M] or [M, 1]; None is 1 everywhere. ``validation`` are pairs for early stopping.
        """
        from lensmith import PairSet, RewardModel

        if comparisons.ndim != 3 or comparisons.shape[1] != 2:
            raise ValueError(f"comparisons: expected the shape [M, 2, d], found {comparisons.shape}")
        first, second = (np.ascontiguousarray(comparisons[:, side]) for side in (0, 1))
        if labels is not None:
            found = np.asarray(labels).reshape(-1)
            if found.shape != (len(first),) or not np.isin(found, (0, 1)).all():
                raise ValueError(
                    f"labels: expected {len(first)} of them, 0 or 1, found {found.dtype} {found.shape}"
                )
            if not found.all():
                swap = (found == 0)[:, None]
                first, second = np.where(swap, second, first), np.where(swap, first, second)
        self.model = RewardModel.fit(PairSet(first, second), validation=validation, **self.settings)
        return self

    def predict(self, embeddings: Array) -> NDArray[np.float32]:
        """Rewards float32 [..., 1] of embeddings [..., d], block by block."""
        rows = embeddings.reshape(-1, embeddings.shape[-1])
        step = max(1, _BLOCK_BYTES // (rows.shape[1] * rows.itemsize))
        dtype = np.float16 if rows.dtype.itemsize == 2 else np.float32
        rewards = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), step):
            block = np.asarray(rows[at : at + step]).astype(dtype, copy=False)
            rewards[at : at + step] = self.model.score(block)
        return rewards.reshape(*embeddings.shape[:-1], 1)


def _both(predictions: ArrayLike, rewards: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scores = _two_axes(np.asarray(predictions, np.float64), "predictions")
    gold = _two_axes(np.asarray(rewards, np.float64), "rewards")
    if scores.shape != gold.shape or not scores.size:
        raise ValueError(f"predictions: expected the shape {gold.shape} of rewards, found {scores.shape}")
    _require_finite(scores, "predictions")
    _require_finite(gold, "rewards")
    return scores, gold


def calc_bon(predictions: ArrayLike, rewards: ArrayLike, N: int = 500) -> float:  # noqa: N803
    """The mean gold reward of the best of ``N`` responses by ``predictions``, both [P, M, 1] or [P, M].

    For N = M that of the response that is ranked first, of equal predictions the earlier one. Below, the mean
    over all sets of N of the M responses, which is what the mean of ``bon_draws`` tends to.
    """
    scores, gold = _both(predictions, rewards)
    most = scores.shape[1]
    if not 1 <= N <= most:
        raise ValueError(f"N: expected 1 to {most}, the responses of a prompt, found {N}")
    order = np.argsort(-scores, axis=1, kind="stable")
    # The response at place i is the best of N that are drawn with probability C(M - 1 - i, N - 1) / C(M, N).
    share = np.zeros(most)
    share[0] = N / most
    for place in range(1, most - N + 1):
        share[place] = share[place - 1] * (most - N - place + 1) / (most - place)
    return float((np.take_along_axis(gold, order, axis=1) @ share).mean())


def bon_draws(
    predictions: ArrayLike, rewards: ArrayLike, sizes: Sequence[int] = _SIZES, repeats: int = 100
) -> NDArray[np.float64]:
    """Best-of-N as step6_eval_rms.py computes it: mean gold rewards [repeats, len(sizes)].

    Repeat r takes the first N responses in the permutation that follows np.random.seed(r), the same for every
    prompt, and of them the one of the highest prediction.
    """
    scores, gold = _both(predictions, rewards)
    prompts, most = scores.shape
    if not len(sizes) or not all(1 <= size <= most for size in sizes):
        raise ValueError(f"sizes: expected numbers from 1 to {most}, the responses, found {tuple(sizes)}")
    means = np.empty((repeats, len(sizes)))
    for repeat in range(repeats):
        drawn = np.random.RandomState(repeat).permutation(most)
        for column, size in enumerate(sizes):
            best = drawn[np.argmax(scores[:, drawn[:size]], axis=1)]
            means[repeat, column] = gold[np.arange(prompts), best].mean()
    return means


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks less their mean; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + len(values)) / 2)[place]


def calc_spearmanr(predictions: ArrayLike, rewards: ArrayLike) -> float:
    """The mean over prompts of Spearman's correlation of predictions and rewards, both [P, M, 1] or [P, M].

    Prompts where one of them has only equal values have no correlation and are left out, as in
    step6_eval_rms.py; NaN if no prompt is left.
    """
    found = []
    for scores, gold in zip(*_both(predictions, rewards), strict=True):
        a, b = _ranks(scores), _ranks(gold)
        size = math.sqrt((a @ a) * (b @ b))
        if size > 0:
            found.append(float(a @ b) / size)
    return float(np.mean(found)) if found else math.nan
