"""Synthetic pairs."""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import numpy as np

from . import _lensmith
from ._engine import Engine, Progress, core, require_kind, settings, text, whole
from ._lensmith import DeviceArray, Embeddings, LensmithError
from ._optional import require
from ._pairs import PairSet, Rows, _arrow, _whole_numbers

if TYPE_CHECKING:
    from ._models import RewardModel, Vae

#: Pairs that iteration makes at a time.
_AHEAD = 256


def synthesis_options(
    fold: int | None = 4,
    per_side: int | None = None,
    pairing: str = "combine",
    sigma2: float = 0.01,
    oversample: int = 4,
    likelihood: str = "posterior",
    source: str = "sample",
    mode: str = "plain",
    seed: int = 0,
) -> str:
    """Options of a synthesis as the engine reads them."""
    return settings(
        fold=fold,
        per_side=per_side,
        pairing=pairing,
        sigma2=sigma2,
        oversample=oversample,
        likelihood=likelihood,
        source=source,
        mode=mode,
        seed=seed,
    )


class Pair(NamedTuple):
    """One pair."""

    #: Embedding of the preferred response, [d].
    chosen: Any
    #: Embedding of the other response, [d].
    rejected: Any

    def __repr__(self) -> str:
        return f"Pair(chosen: {self.chosen.dtype} {list(self.chosen.shape)}, rejected: the same)"


class PairBatch:
    """Some synthetic pairs."""

    def __init__(
        self, chosen: Embeddings | DeviceArray, rejected: Embeddings | DeviceArray, indices: np.ndarray
    ) -> None:
        #: Embeddings of the preferred responses, [b, d]: :class:`Embeddings`, or :class:`DeviceArray` on a GPU.
        self.chosen: Any = chosen
        #: Embeddings of the other responses, [b, d].
        self.rejected: Any = rejected
        #: Numbers of the pairs, uint64 [b].
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def torch(self) -> tuple[Any, Any]:
        """Both sides as tensors over the same memory."""
        return self.chosen.torch(), self.rejected.torch()

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """Both sides as numpy arrays over the same memory; of pairs on a GPU copies."""
        return self.chosen.numpy(), self.rejected.numpy()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Columns ``chosen`` and ``rejected`` of fixed-size lists, for libraries that read Arrow."""
        chosen, rejected = (s.host() if isinstance(s, DeviceArray) else s for s in (self.chosen, self.rejected))
        return _arrow(chosen, rejected, None).__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"PairBatch({len(self)} pairs, dim={self.chosen.shape[1]}, {self.chosen.dtype})"


class SyntheticPairs:
    """Original and synthetic pairs of a plan, each made when it is asked for; see :func:`synthesize`.

    Pair j is a function of j, the seeds, the VAE and the options: it has the same bits alone, in a slice, in any order, in
    any process, and in a folder that :meth:`write` or ``lensmith synth`` makes. The first ``len(seeds)`` pairs are the
    originals.
    """

    def __init__(self, vae: Vae, seeds: PairSet, options: str, dtype: str, engine: Engine | None) -> None:
        from ._models import Vae

        require_kind(vae, Vae, "vae")
        require_kind(seeds, PairSet, "seeds")
        self.vae = vae
        self.seeds = seeds
        self._engine = engine
        self._asked = options
        self._core = _lensmith.Synthesis(core(engine), vae._core, seeds._core, options, text(dtype, "dtype"))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        allow_outside: bool = False,
        engine: Engine | None = None,
    ) -> SyntheticPairs:
        """The pairs of a recipe: a ``recipe.json``, or the folder of :meth:`write` or ``lensmith synth`` that holds one.

        Args:
            path: The recipe or its folder.
            dtype: Of the pairs: "float32", "float16" or "bfloat16".
            allow_outside: Whether the recipe may name files that lie neither around it nor in the working folder.
            engine: The device.

        Raises:
            LensmithError: Seeds or a VAE that are missing, or not those that the recipe was made for.
        """
        from ._models import Vae

        seeds, vae, options = _lensmith.open_recipe(core(engine), os.fspath(path), allow_outside)
        return cls(Vae._of(vae), PairSet._of(seeds, engine), options, dtype, engine)

    @property
    def dim(self) -> int:
        """Values of an embedding, d."""
        return self.vae.dim

    @property
    def dtype(self) -> str:
        """ "float32", "float16" or "bfloat16"."""
        return self._core.dtype

    @property
    def options(self) -> dict[str, Any]:
        """The options of :func:`synthesize`."""
        options: dict[str, Any] = json.loads(self._core.options)
        return options

    def __len__(self) -> int:
        return self._core.pairs

    @overload
    def __getitem__(self, number: int) -> Pair: ...
    @overload
    def __getitem__(self, number: Rows) -> PairBatch: ...
    def __getitem__(self, number: int | Rows) -> Pair | PairBatch:
        """Pair ``number``, or several as a :class:`PairBatch`: a slice, numbers in a list, array or tensor, or a mask."""
        if isinstance(number, slice):
            numbers = range(len(self))[number]
            if not numbers:
                raise ValueError(f"pairs: expected one or more, found {number} of {len(self)}")
            if numbers.step == 1:
                return self._range(numbers.start, numbers.stop)
            return self.take(np.arange(numbers.start, numbers.stop, numbers.step))
        shape: Any = getattr(number, "shape", ())
        if isinstance(number, list | range) or len(shape):
            n, rows = len(self), _whole_numbers(number, "pairs", mask=len(self))
            return self.take(np.where((rows < 0) & (rows >= -n), rows + n, rows))
        try:
            j = operator.index(cast(int, number))
        except TypeError:
            raise TypeError(f"pairs: expected a whole number or a slice, found {type(number).__name__}") from None
        j += len(self) if j < 0 else 0
        if not 0 <= j < len(self):
            raise IndexError(f"pairs: expected a number below {len(self)}, found {number}")
        return next(_single(self._range(j, j + 1)))

    def __iter__(self) -> Iterator[Pair]:
        """All pairs in order, one by one; :meth:`batches` is faster."""
        for batch in self.batches(_AHEAD):
            yield from _single(batch)

    def _range(self, start: int, stop: int) -> PairBatch:
        chosen, rejected = self._core.range(start, stop)
        return PairBatch(chosen, rejected, np.arange(start, stop, dtype=np.uint64))

    def batches(self, size: int, start: int = 0) -> Iterator[PairBatch]:
        """Pairs from number ``start`` on in order, ``size`` at a time; the last batch may be smaller."""
        size, start = whole(size, "size", 1), whole(start, "start")
        return (self._range(first, min(first + size, len(self))) for first in range(start, len(self), size))

    def take(
        self, indices: Sequence[int] | np.ndarray, *, on_device: bool = False, pinned: bool = False
    ) -> PairBatch:
        """The pairs with these numbers, in this order; a number may be there more than once.

        The first call encodes all seeds; what it keeps takes some hundred bytes a seed.

        Args:
            indices: Numbers of pairs, [b].
            on_device: Whether they stay in the memory of the engine's GPU, as :class:`DeviceArray`.
            pinned: Whether they lie in memory that is registered with the engine's GPU, for copies there; without a GPU it
                changes nothing.

        Raises:
            IndexError: A number that is not there.
            LensmithError: ``on_device`` with an engine that is no GPU's.
        """
        numbers = np.asarray(indices)
        if not numbers.size:
            raise ValueError("indices: expected one or more numbers, found none")
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise TypeError(f"indices: expected whole numbers [b], found {numbers.dtype} of shape {list(numbers.shape)}")
        for end in (numbers.min(), numbers.max()):
            if not 0 <= int(end) < len(self):
                raise IndexError(f"indices: expected numbers from 0 to {len(self) - 1}, found {end}")
        first, count = int(numbers[0]), len(numbers)
        if not (on_device or pinned) and int(numbers[-1]) - first + 1 == count and (np.diff(numbers.astype(np.int64)) == 1).all():
            # In order a batch is made faster.
            return self._range(first, first + count)
        numbers = numbers.astype(np.uint64)
        chosen: Embeddings | DeviceArray
        rejected: Embeddings | DeviceArray
        if on_device:
            chosen, rejected = self._core.take_on_device(numbers.tolist())
        else:
            chosen, rejected = self._core.take(numbers.tolist(), pinned)
        return PairBatch(chosen, rejected, numbers)

    def torch(self, batch_size: int = 1024, **options: Any) -> Any:
        """A dataset for ``torch.utils.data.DataLoader``; see :func:`lensmith.torch.dataset` for the options."""
        from .torch import dataset

        return dataset(self, batch_size=batch_size, **options)

    @property
    def device(self) -> str:
        """The device that makes them: "cpu", or a GPU as in "cuda:0"."""
        return str(json.loads(core(self._engine).devices())[0]["name"])

    def to_pairs(self) -> PairSet:
        """All pairs in memory."""
        batch = self._range(0, len(self))
        return PairSet(batch.chosen, batch.rejected, engine=self._engine)

    def to_hf_dataset(self) -> Any:
        """A ``datasets.Dataset`` of all pairs in memory, with columns ``chosen`` and ``rejected``."""
        datasets = require("datasets", "SyntheticPairs.to_hf_dataset()")
        batch = self._range(0, len(self))
        return datasets.Dataset(_arrow(batch.chosen, batch.rejected, None))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """All pairs in order, batch by batch, for libraries that read Arrow."""
        pa = require("pyarrow", "Arrow export")
        batches = (_arrow(b.chosen, b.rejected, None) for b in self.batches(_AHEAD * 16))
        first = next(batches)

        def records() -> Iterator[Any]:
            yield from first.to_batches()
            for table in batches:
                yield from table.to_batches()

        return pa.RecordBatchReader.from_batches(first.schema, records()).__arrow_c_stream__(requested_schema)

    def order_preservation(self, model: RewardModel) -> dict[str, Any]:
        """How often ``model`` orders synthetic pairs as their seeds (Theorem 1 of the paper)."""
        found: dict[str, Any] = json.loads(self._core.order_preservation(model._core))
        return found

    def write(
        self,
        out: str | os.PathLike[str],
        *,
        output: str = "embeddings",
        dtype: str = "bf16",
        shard_rows: int | None = None,
        part: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
        progress: bool = False,
    ) -> dict[str, Any]:
        """Writes a folder as ``lensmith synth`` does, to the same bytes; a call that was killed goes on where it stopped.

        The recipe names the seeds' files and the VAE's. Those that are in memory alone are saved into ``out/inputs``.

        Args:
            out: The folder, or its URL in an object store ("s3://bucket/folder").
            output: "embeddings", "latents" or "recipe" (a few kilobytes, from which any pair can be made).
            dtype: How embeddings are stored: "bf16", "f16" or "f32".
            shard_rows: Pairs a shard; by default shards of about 256 MiB.
            part: (index, count): which part of the shards to make; parts may be made on other machines.
            overwrite: Whether to replace an output of other settings.
            callbacks: Functions that get {"done", "total"}, in pairs, after every piece.
            progress: Whether to show a progress bar (tqdm).

        Returns:
            What was done, as ``lensmith synth --json`` says it.

        Raises:
            LensmithError: A folder that holds something else, a full disk, a value that the dtype cannot hold.
        """
        folder, overwrite = os.fspath(out), bool(overwrite)
        text(output, "output", ("embeddings", "latents", "recipe"))
        text(dtype, "dtype")
        shard_rows = None if shard_rows is None else whole(shard_rows, "shard_rows", 1)
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise TypeError(f"part: expected (index, count), found {part!r}")
        index, count = (whole(value, "part") for value in part)
        if index >= count:
            raise ValueError(f"part: expected (index, count) with index below count, found ({index}, {count})")
        part = (index, count)
        files, vae, relative = self._files(folder, overwrite)
        told = Progress(callbacks, progress, len(self), "pair")

        def on_progress(done: int, total: int) -> None:
            told.show({"done": done, "total": total}, done, {})

        listener = on_progress if told.wanted else None
        stored = (output, dtype)
        try:
            done = self._core.write(
                files, vae, relative, folder, stored, shard_rows, part, overwrite, listener
            )
        finally:
            told.close()
        summary: dict[str, Any] = json.loads(done)
        return summary

    def _files(self, folder: str, overwrite: bool) -> tuple[tuple[list[str], str, str], str, tuple[str, str] | None]:
        """The files of the seeds and of the VAE, and how a recipe in `folder` names them if they are in it."""
        names = "inputs/seeds.safetensors", "inputs/vae.safetensors"
        seeds, vae = (os.path.join(folder, name) for name in names)
        files = self.seeds._core.files
        # What a recipe that is there names stays, also where the call is refused later on.
        outputs = (os.path.join(folder, name) for name in ("recipe.json", "manifest.json"))
        used = not overwrite and any(_lensmith.file_exists(path) for path in outputs)
        if files is None:
            _keep(self.seeds.save, seeds, used)
        _keep(self.vae.save, vae, used)
        if files is None:
            return ([seeds], "chosen", "rejected"), vae, names
        return files, vae, None

    def with_engine(self, engine: Engine) -> SyntheticPairs:
        """The same pairs on another device; their bits are the same where its arithmetic is."""
        return SyntheticPairs(self.vae, self.seeds, self._asked, self.dtype, engine)

    def __repr__(self) -> str:
        return f"SyntheticPairs({len(self)} pairs of {len(self.seeds)} seeds, dim={self.dim}, {self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return SyntheticPairs, (self.vae, self.seeds, self._asked, self.dtype, self._engine)


def synthesize(
    vae: Vae,
    seeds: PairSet,
    fold: int | None = 4,
    *,
    per_side: int | None = None,
    pairing: str = "combine",
    sigma2: float = 0.01,
    oversample: int = 4,
    likelihood: str = "posterior",
    source: str = "sample",
    mode: str = "plain",
    seed: int = 0,
    dtype: str = "float32",
    engine: Engine | None = None,
) -> SyntheticPairs:
    """Original and synthetic pairs of seeds, lazily: nothing is made before it is asked for.

    Args:
        vae: A model of the seeds' dimension.
        seeds: Pairs to make others of.
        fold: Pairs per seed, the original among them; None makes all that ``per_side`` allows.
        per_side: Samples per seed and side, k; by default as few as ``fold`` needs.
        pairing: "combine" (every chosen sample with every rejected one) or "match" (the a-th with the a-th).
        sigma2: Variance of the perturbation.
        oversample: Candidates drawn per candidate kept.
        likelihood: What ranks candidates: "posterior", "prior" or "none".
        source: What is perturbed: a "sample" of the posterior or its "mean".
        mode: "plain" decodes the perturbed latent; "residual" adds what it changed to the seed.
        seed: Of all noise.
        dtype: Of the pairs: "float32", "float16" or "bfloat16".
        engine: The device.

    Raises:
        TypeError: An option of another type.
        ValueError: An option that is negative, not finite, or a word that it does not have; seeds of another dimension
            than the VAE's.
        LensmithError: Options out of the engine's range.
    """
    options = synthesis_options(fold, per_side, pairing, sigma2, oversample, likelihood, source, mode, seed)
    require_kind(seeds, PairSet, "seeds")
    return SyntheticPairs(vae, seeds, options, dtype, engine or seeds._engine)


def _single(batch: PairBatch) -> Iterator[Pair]:
    """The pairs of a batch, each side [d]: numpy arrays, or tensors of bfloat16."""
    sides = batch.torch() if batch.chosen.dtype == "bfloat16" else batch.numpy()
    for chosen, rejected in zip(*sides, strict=True):
        yield Pair(chosen, rejected)


def _keep(save: Callable[[str], None], path: str, used: bool) -> None:
    """Saves to `path`, which may be a URL, unless the same bytes are there: a file that a recipe names is not to change
    its time.

    Raises:
        LensmithError: Other bytes are there, and an output that `used` them.
    """
    with tempfile.TemporaryDirectory() as folder:
        new = os.path.join(folder, "new.safetensors")
        save(new)
        _lensmith.keep_file(new, path, used)
