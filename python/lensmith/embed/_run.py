"""From rows to shards or tensors: one pass that checks every row, then shard by shard the embeddings."""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from .._optional import require
from ._folder import Folder
from ._model import (
    DTYPES,
    Embedder,
    Scorer,
    TextModel,
    load_model,
    load_tokenizer,
    model_name,
    parse_dtype,
    parse_pooling,
    tokenizer_digest,
    weights_digest,
)
from ._render import Renderer
from ._rows import Example, Layout, Scan, Source, default_shard_rows, scan


@dataclass(frozen=True)
class Options:
    """What all functions of this module take; `lensmith.embed.embed` explains each."""

    model: Any
    tokenizer: Any = None
    pooling: Any = "last"
    layers: Any = None
    normalize: bool = False
    dtype: Any = None
    max_length: int | None = None
    truncation_side: str = "left"
    padding_side: str = "right"
    batch_tokens: int = 16384
    device: Any = None
    revision: str | None = None
    template: str | None = None
    template_args: Mapping[str, Any] | None = None
    model_kwargs: Mapping[str, Any] | None = None
    shard_rows: int | None = None
    skip_invalid: bool = False
    overwrite: bool = False
    progress: bool = True

    def text_model(self) -> dict[str, Any]:
        """What a TextModel takes of them."""
        return {
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
            "padding_side": self.padding_side,
            "batch_tokens": self.batch_tokens,
        }


class Progress:
    """What is done, on standard error; nothing without tqdm or with `shown` False."""

    def __init__(self, total: int | None, shown: bool, what: str, unit: str = "text") -> None:
        self._bar: Any = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit=unit, desc=what, file=sys.stderr, smoothing=0.05)

    def skip(self, texts: int) -> None:
        """Texts that were there already: not counted into the rate."""
        if self._bar is not None:
            self._bar.initial += texts
            self._bar.update(texts)

    def add(self, count: int) -> None:
        """Texts or rows that are done now."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def warn(message: str) -> None:
    """A LensmithWarning at the line that called this package."""
    from .. import LensmithWarning

    frame, depth = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__ or ""):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, LensmithWarning, stacklevel=depth)


def tensors_of(layout: Layout, vectors: Any, examples: list[Example], grouped: bool) -> dict[str, Any]:
    """The tensors of a shard from its texts' vectors `[rows * texts_per_row, d]`."""
    import torch

    if layout.kind == "embeddings":
        return {"embeddings": vectors}
    sets = vectors.view(len(examples), -1, vectors.shape[1])
    if layout.kind == "candidates":
        found = {"candidates": sets}
        if examples[0].gold is not None:
            found["gold"] = torch.tensor([example.gold for example in examples], dtype=torch.float32)
        return found
    found = {"chosen": sets[:, 0].contiguous(), "rejected": sets[:, 1].contiguous()}
    if grouped:
        found["group"] = torch.tensor([example.group_or_own() for example in examples], dtype=torch.int64)
    return found


def shards(
    layout: Layout, source: Source, renderer: Renderer, found: Scan, rows: int, skip: bool
) -> Iterator[tuple[int, list[Example]]]:
    """The second pass: the rows of each shard, which must be those of the first pass."""
    examples = layout.examples(source, renderer, [] if skip else None)
    for index, expected in enumerate(found.digests):
        part = list(islice(examples, rows))
        digest = hashlib.sha256(b"".join(example.digest() for example in part)).hexdigest()
        if digest != expected:
            raise ValueError(f"{source.name}: its rows changed while they were read: run again")
        yield index, part
    if next(examples, None) is not None:
        raise ValueError(f"{source.name}: it got more rows while it was read: run again")


def embed_rows(layout: Layout, source: Source, options: Options, out: Path | None) -> dict[str, Any] | None:
    """Embeds every row. Gives the tensors by name, or None where they are in the folder `out`."""
    torch = require("torch", "lm.embed()")
    pooling, layers = parse_pooling(options.pooling, options.layers)
    dtype = parse_dtype(options.dtype)
    if options.shard_rows is not None and options.shard_rows < 1:
        raise ValueError(f"shard_rows: expected 1 or more, found {options.shard_rows}")
    encoder, name, renderer, found = prepare(
        layout,
        source,
        options,
        "AutoModel",
        dtype,
        lambda model, tokenizer: Embedder(
            model,
            tokenizer,
            pooling=pooling,
            layers=layers,
            normalize=options.normalize,
            dtype=dtype,
            **options.text_model(),
        ),
    )
    assert isinstance(encoder, Embedder)
    rows = options.shard_rows or default_shard_rows(found.texts_per_row)
    opened: Any = nullcontext()
    if out is not None:
        settings = settings_of(layout, encoder, renderer, found, rows, name, options)
        opened = Folder(out, layout.kind, settings, versions(encoder), found.rows, options.overwrite)
    memory: dict[str, Any] = {}
    truncated = done = 0
    total = found.rows * found.texts_per_row
    with opened as folder, Progress(total, options.progress, layout.kind) as bar:
        for index, examples in shards(layout, source, renderer, found, rows, options.skip_invalid):
            texts = [text for example in examples for text in example.texts]
            if folder is not None and folder.has(index, found.digests[index]):
                bar.skip(len(texts))
            else:
                vectors, cut = named(encoder, texts, done, found.texts_per_row, bar.add)
                tensors = tensors_of(layout, vectors, examples, found.grouped)
                if folder is not None:
                    said = [example.said for example in examples if example.said is not None]
                    folder.write(index, tensors, found.digests[index], cut, said or None)
                else:
                    truncated += cut
                    for key, part in tensors.items():
                        if key not in memory:
                            memory[key] = torch.empty((found.rows, *part.shape[1:]), dtype=part.dtype)
                        memory[key][done : done + len(part)] = part
            done += len(examples)
        if folder is not None:
            folder.finish()
            truncated = folder.truncated
    report(truncated, total, encoder)
    return memory if out is None else None


def prepare(
    layout: Layout,
    source: Source,
    options: Options,
    auto: str,
    dtype: Any,
    make: Callable[[Any, Any], TextModel],
) -> tuple[TextModel, str, Renderer, Scan]:
    """The model with its name, and the first pass over the rows, which comes before weights are loaded."""
    name, kwargs = model_name(options.model), options.model_kwargs
    tokenizer = load_tokenizer(options.tokenizer, name, options.revision, kwargs)
    renderer = Renderer(tokenizer, options.template, options.template_args, name or "this model")
    with Progress(None, options.progress, "reading", "row") as bar:
        found = scan(layout, source, renderer, options.shard_rows, options.skip_invalid, bar.add)
    model = load_model(
        options.model,
        auto,
        dtype=dtype,
        device=options.device,
        revision=options.revision,
        model_kwargs=kwargs,
    )
    if found.skipped:
        out, rows = len(found.skipped), len(found.skipped) + found.rows
        warn(f"{out} of {rows} rows were left out, the first: {found.skipped[0]}")
    return make(model, tokenizer), name or type(model).__name__, renderer, found


def named(
    encoder: TextModel, texts: list[Any], first_row: int, per_row: int, done: Callable[[int], None]
) -> tuple[Any, int]:
    """`encoder.vectors`, whose errors count texts; here they name the row."""
    try:
        return encoder.vectors(texts, done)
    except ValueError as error:
        at = re.match(r"text (\d+): ", str(error))
        if at is None:
            raise
        row, text = divmod(int(at[1]), per_row)
        raise ValueError(
            f"row {first_row + row} of those embedded, text {text}: {str(error)[at.end() :]}"
        ) from None


def settings_of(
    layout: Layout, encoder: Embedder, renderer: Renderer, found: Scan, rows: int, name: str, options: Options
) -> dict[str, Any]:
    """All that the bytes of the shards follow from, in the order in which differences are named."""
    return {
        "kind": layout.kind,
        "model": name,
        "revision": options.revision,
        "commit": getattr(encoder.model.config, "_commit_hash", None),
        "pooling": list(encoder.pooling),
        "layers": encoder.layers,
        "normalize": encoder.normalize,
        "dtype": DTYPES[str(encoder.dtype).removeprefix("torch.")],
        "dim": encoder.dim,
        "max_length": encoder.max_length,
        "truncation_side": encoder.truncation_side,
        "template": renderer.identity(),
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "shard_rows": rows,
        "rows": found.rows,
        "skipped_rows": len(found.skipped),
        "dataset": found.fingerprint,
        "weights": weights_digest(encoder.body),
    }


def versions(encoder: TextModel) -> dict[str, str]:
    """What embeddings were begun with; for people, never compared."""
    import torch
    import transformers

    device = next(encoder.body.parameters()).device.type
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}


def report(truncated: int, total: int, encoder: TextModel) -> None:
    """Warns of texts that were cut."""
    if truncated:
        lost = "beginning" if encoder.truncation_side == "left" else "end"
        warn(
            f"{truncated} of {total} texts were longer than {encoder.max_length} tokens and lost their "
            f"{lost}: max_length (--max-length) sets the limit"
        )


def score_rows(layout: Layout, source: Source, options: Options) -> Any:
    """The scores of every text, float32 `[rows, texts_per_row]`, by a reward model."""
    dtype = parse_dtype(options.dtype)
    scorer, _, renderer, found = prepare(
        layout,
        source,
        options,
        "AutoModelForSequenceClassification",
        dtype,
        lambda model, tokenizer: Scorer(model, tokenizer, **options.text_model()),
    )
    labels = getattr(scorer.model.config, "num_labels", 1)
    if labels != 1:
        raise ValueError(f"model: expected a reward model with one label, found one with {labels}")
    rows = default_shard_rows(found.texts_per_row)
    parts: list[Any] = []
    truncated = done = 0
    total = found.rows * found.texts_per_row
    with Progress(total, options.progress, "scores") as bar:
        for _, examples in shards(layout, source, renderer, found, rows, options.skip_invalid):
            texts = [text for example in examples for text in example.texts]
            vectors, cut = named(scorer, texts, done, found.texts_per_row, bar.add)
            parts.append(vectors.view(len(examples), -1))
            truncated += cut
            done += len(examples)
    report(truncated, total, scorer)
    return require("torch", "lm.gold_scores()").cat(parts).numpy()
