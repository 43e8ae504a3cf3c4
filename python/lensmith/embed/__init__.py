"""Embeddings of language models, straight into lensmith's shards.

`embed` takes preference pairs as text and gives a PairSet, `embed_candidates` best-of-N sets, `embed_texts`
plain texts; `gold_scores` lets a reward model judge best-of-N sets. `python -m lensmith.embed --help` is the
same from the shell. Needs torch and transformers, and xxhash to write folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._optional import require
from ._model import PRESETS
from ._render import InvalidRow
from ._rows import Candidates, Pairs, Texts, open_source
from ._run import Options, embed_rows, score_rows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .._pairs import PairSet

__all__ = ["PRESETS", "BestOfN", "InvalidRow", "embed", "embed_candidates", "embed_texts", "gold_scores"]


class BestOfN(NamedTuple):
    """Best-of-N sets: `RewardModel.best_of_n(*sets)` takes them."""

    #: Embeddings of the responses, `[p, N, d]`.
    candidates: torch.Tensor
    #: Gold scores, float32 `[p, N]`; None where the rows have none.
    gold: np.ndarray | None


def embed(
    dataset: Any,
    model: Any,
    *,
    out: str | Path | None = None,
    pooling: str | Sequence[str] = "last",
    layers: Sequence[int] | str | None = None,
    normalize: bool = False,
    dtype: Any = None,
    max_length: int | None = None,
    truncation_side: str = "left",
    batch_tokens: int = 16384,
    padding_side: str = "right",
    device: Any = None,
    revision: str | None = None,
    tokenizer: Any = None,
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    columns: Mapping[str, str | None] | None = None,
    group: str | bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    shard_rows: int | None = None,
    skip_invalid: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> PairSet:
    """Embeddings of preference pairs.

    Each row of `dataset` has columns `chosen` and `rejected`, as text or as lists of messages {"role",
    "content"}, and may have a `prompt`; without one, both hold whole conversations. Texts are joined with
    their prompt as they are; messages go through the tokenizer's chat template, which brings its own BOS
    token.

    Args:
        dataset: a `datasets.Dataset`, an Arrow table, a list of dicts, or the path of a .jsonl, .jsonl.gz or
            .parquet file.
        model: name or path of a transformers model, or a loaded one. Its head is left out.
        out: folder for shards `pairs-00000.safetensors`, ...; the result is then mapped from it. A run that
            was killed goes on when it is called again, and gives the same bytes. None keeps all in memory.
        pooling: "last" token, "mean" over all tokens, "first" token ("cls"), several joined by "+", or a
            preset: "paper" (last token, last layer) or "wide" (last token and mean, of the layers
            "quarters").
        layers: layers to concatenate, as numbers: -1 is the last, after the model's final norm, 0 the token
            embeddings. "quarters" are those at 1, 3/4, 1/2 and 1/4 of the depth. None is [-1], or the
            preset's.
        normalize: whether each embedding is scaled to length 1.
        dtype: "f32", "bf16" or "f16": what a named model computes in, and what is stored. None keeps the
            model's.
        max_length: most tokens of a text. None is what model and tokenizer allow.
        truncation_side: "left" cuts the beginning of a text that is too long, behind its BOS token, so that
            the response stays; "right" cuts its end.
        batch_tokens: most tokens of a batch, padding included. Results follow from it only by rounding.
        padding_side: where batches are padded. Results do not follow from it but by rounding.
        device: where a named model runs, as "cuda:1"; "auto" spreads it by `accelerate`. None is the first
            GPU, else the CPU.
        revision: branch, tag or commit of a named model.
        tokenizer: name, path or tokenizer, where it is not the model's.
        template: None; "chat" makes turns of texts too; "hh" takes texts for dialogues as HH-RLHF writes them
            and makes turns of them; a text with {prompt} and {response}; or a Jinja chat template in place of
            the tokenizer's.
        template_args: further arguments of the chat template. Templates that ask for the date get 26 July
            2024.
        columns: other names of the columns, as {"chosen": "preferred"}; {"prompt": None} leaves the prompt
            out.
        group: the column that says which pairs belong to one prompt. None takes the prompt, else the turns
            that both conversations begin with; False writes no groups.
        model_kwargs: further arguments of `from_pretrained`, as attn_implementation or quantization_config.
        shard_rows: pairs of a shard. None is 2,048.
        skip_invalid: leaves out rows that cannot be embedded, with a warning, in place of an error.
        overwrite: replaces what embeddings of other settings are in `out`.
        progress: shows a bar on standard error (needs tqdm).

    Returns:
        A PairSet: `chosen` and `rejected` [n, d] in the order of the rows, d = width x poolings x layers, and
        `group` [n] int64, the hash of each pair's prompt, where there are prompts.

    Raises:
        InvalidRow: a ValueError that names the row: None, an empty response, another type, turns the template
            refuses.
        ValueError: arguments out of range, a missing column, no chat template, values that are not finite, or
            a folder that was begun with other settings, which names the setting.
        FileExistsError: `out` holds something else.
        BlockingIOError: another process is writing there.
        ImportError: torch, transformers or xxhash is missing.

    Warns:
        LensmithWarning: texts were too long and were cut, or rows were left out.
    """
    layout = Pairs(columns, group)
    options = Options(
        model=model,
        pooling=pooling,
        layers=layers,
        normalize=normalize,
        dtype=dtype,
        max_length=max_length,
        truncation_side=truncation_side,
        batch_tokens=batch_tokens,
        padding_side=padding_side,
        device=device,
        revision=revision,
        tokenizer=tokenizer,
        template=template,
        template_args=template_args,
        model_kwargs=model_kwargs,
        shard_rows=shard_rows,
        skip_invalid=skip_invalid,
        overwrite=overwrite,
        progress=progress,
    )
    tensors = embed_rows(layout, open_source(dataset), options, None if out is None else Path(out))
    from .._pairs import PairSet

    if tensors is None:
        return PairSet.open(str(out))
    return PairSet(tensors["chosen"], tensors["rejected"], group=tensors.get("group"))


def embed_candidates(
    dataset: Any,
    model: Any,
    *,
    gold: Any = None,
    columns: Mapping[str, str | None] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> BestOfN:
    """Embeddings of best-of-N sets: N responses to each prompt.

    Each row of `dataset` has a column `responses`, a list of N texts or conversations, and may have `prompt`
    and `scores`, the gold scores of the responses. N is the same in all rows, 2 or more.

    Args:
        dataset: as of `embed`.
        model: as of `embed`.
        gold: gold scores [p, N] in place of a column, as `gold_scores` makes them; a row for each row of
            `dataset`.
        columns: other names of the columns, as {"scores": "rewards"}.
        out: folder for shards `candidates-00000.safetensors`, ..., which `lensmith best-of-n` and `run
            --candidates` read if there are gold scores: `candidates` [p, N, d], `gold` [p, N] F32. None keeps
            all in memory.
        options: the other arguments of `embed`, but `group`. `shard_rows` counts prompts.

    Returns:
        `candidates` [p, N, d], a tensor on the CPU, and `gold` [p, N], or None without scores.

    Raises:
        As `embed`; InvalidRow also for another number of responses, and for scores that are not N finite
        numbers.
    """
    layout = Candidates(columns, gold)
    tensors = _embed(layout, open_source(dataset), _options("embed_candidates", model, options), out)
    found = tensors.get("gold")
    return BestOfN(tensors["candidates"], None if found is None else found.numpy())


def embed_texts(
    texts: Any,
    model: Any,
    *,
    columns: Mapping[str, str | None] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> torch.Tensor:
    """Embeddings of texts or conversations.

    Args:
        texts: a list of texts or of conversations (lists of messages), or a data set as of `embed` with a
            column `text`.
        model: as of `embed`.
        columns: other names of the columns `text` and `prompt`.
        out: folder for shards `embeddings-00000.safetensors`, ..., which `lensmith score` reads: `embeddings`
            [n, d].
        options: the other arguments of `embed`, but `group`. `shard_rows` counts texts.

    Returns:
        The embeddings [n, d], a tensor on the CPU, in the order of the texts.

    Raises:
        As `embed`.
    """
    source = open_source(texts, texts=True)
    return _embed(Texts(columns), source, _options("embed_texts", model, options), out)["embeddings"]


def gold_scores(
    dataset: Any, model: Any, *, columns: Mapping[str, str | None] | None = None, **options: Any
) -> np.ndarray:
    """Scores of best-of-N sets by a reward model, for `embed_candidates(gold=...)`.

    Args:
        dataset: rows with `responses`, and perhaps a `prompt`, as of `embed_candidates`.
        model: name or path of a reward model, or a loaded one: sequence classification with one label. Where
            its head is a linear layer called `score`, it is given the last token by the attention mask.
        columns: other names of the columns.
        options: `tokenizer`, `template`, `template_args`, `dtype`, `device`, `revision`, `max_length`,
            `truncation_side`, `batch_tokens`, `model_kwargs`, `skip_invalid` and `progress` of `embed`.

    Returns:
        Scores, float32 [p, N].

    Raises:
        As `embed_candidates`; ValueError for a model with more labels than one.
    """
    layout = Candidates({"scores": None, **(columns or {})})
    for name in ("pooling", "layers", "normalize", "shard_rows", "overwrite"):
        if name in options:
            raise TypeError(f"gold_scores() takes no {name}")
    scores: np.ndarray = score_rows(layout, open_source(dataset), _options("gold_scores", model, options))
    return scores


def _options(function: str, model: Any, options: Mapping[str, Any]) -> Options:
    """Options from keyword arguments, which must be known."""
    known = {field.name for field in fields(Options)} - {"model"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(
            f"{function}() got an unexpected argument {unknown[0]!r}: expected some of {sorted(known)}"
        )
    return Options(model=model, **options)


def _embed(layout: Any, source: Any, options: Options, out: str | Path | None) -> dict[str, Any]:
    """The tensors, joined from the shards where these are in a folder."""
    tensors = embed_rows(layout, source, options, None if out is None else Path(out))
    if tensors is not None:
        return tensors
    torch, safetensors = require("torch", "lm.embed()"), require("safetensors.torch", "lm.embed(out=...)")
    files = sorted(Path(str(out)).glob(f"{layout.kind}-*.safetensors"))
    parts = [safetensors.load_file(file) for file in files]
    return {
        name: torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
        for name in parts[0]
    }
