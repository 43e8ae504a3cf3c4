"""Rejection sampling: of several responses to a prompt the one that a reward model ranks first, to train on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _lensmith
from ._engine import Engine, core, require_kind, settings, still_open
from ._files import whole_file
from ._models import RewardModel
from .embed import BestOfN
from .embed._render import InvalidRow, messages_of
from .embed._rows import Source, open_source

#: Columns of a data set, as `embed_candidates` names them, and that of the responses' lengths.
COLUMNS = ("prompt", "responses", "lengths")


@dataclass(frozen=True)
class Selection:
    """What :func:`select` took; ``datasets.Dataset.from_list(selection.rows)`` goes into TRL's trainers."""

    #: The rows, in the order of the prompts.
    rows: list[dict[str, Any]]
    #: Prompts there were.
    prompts: int
    #: Prompts without a row, by the first limit that left none of their responses: "length", "uncertainty",
    #: "reward", "margin", and "same" where all responses are one text.
    left_out: dict[str, int]
    #: Mean reward of the responses taken; of pairs, of the chosen ones.
    reward: float
    #: Mean reward of all responses: of one taken at random.
    random: float

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __str__(self) -> str:
        left = ", ".join(f"{count} by {limit}" for limit, count in self.left_out.items() if count)
        without = f"; left out: {left}" if left else ""
        rewards = f"reward {self.reward:.4f} of those taken, {self.random:.4f} at random"
        return f"{len(self)} of {self.prompts} prompts{without}\n{rewards}"


def select(
    dataset: Any,
    candidates: Any,
    reward_model: RewardModel,
    *,
    form: str = "sft",
    min_reward: float | None = None,
    min_margin: float | None = None,
    max_uncertainty: float | None = None,
    uncertainty_penalty: float = 0.0,
    min_length: int = 1,
    max_length: int | None = None,
    length: Callable[[Any], int] | None = None,
    columns: Mapping[str, str | None] | None = None,
    out: str | os.PathLike[str] | None = None,
    engine: Engine | None = None,
) -> Selection:
    """Rejection samples: of the responses to each prompt the one that a reward model ranks first.

    The program's ``lensmith best-of-n --select`` writes the same lines::

        rows = [{"prompt": "Name a prime. ", "responses": ["7", "Nine", "No."]}, ...]
        candidates = lm.embed_candidates(rows, "org/language-model")
        sft = lm.select(rows, candidates, reward, max_uncertainty=1.0, out="sft.jsonl")
        SFTTrainer(..., train_dataset=datasets.Dataset.from_list(sft.rows))

    Limits of length and of uncertainty leave out responses. Of those within, the first and the last are looked at: a
    prompt is left out if the first one's reward is below ``min_reward``, or too close to the last one's. Of equal rewards
    the response that comes first ranks higher. Rewards of different prompts do not compare, so ``min_reward`` leaves out
    prompts as well as poor responses; ``min_margin`` asks for prompts whose responses differ.

    Args:
        dataset: Rows with ``responses`` and perhaps a ``prompt``, as of :func:`lensmith.embed_candidates`.
        candidates: Their embeddings: what ``embed_candidates`` gave, an array [p, N, d], or the folder that it wrote.
            A folder knows its texts: rows that ``skip_invalid`` left out are left out here, and other rows are refused.
        reward_model: Ranks the responses.
        form: What a row has: "sft" for ``prompt`` and ``completion`` (of responses without a prompt ``text`` or
            ``messages``); "messages"; or "dpo" for ``prompt``, ``chosen`` and ``rejected``, the first and the last
            response. As TRL has them: texts where prompt and responses are texts, else lists of messages.
        min_reward: Least reward of the response that is taken, less the penalty.
        min_margin: Least difference of its reward to the last one's, both less the penalty.
        max_uncertainty: Most standard deviation of a response's rewards over an ensemble's heads.
        uncertainty_penalty: So many of these deviations are subtracted from every reward before ranking.
        min_length: Least length of a response.
        max_length: Most length of a response.
        length: The length of a response, text or messages, such as ``lambda text: len(tokenizer(text).input_ids)``.
            Without it a column ``lengths``, if ``columns`` names one, else characters.
        columns: Other names of the columns, as {"responses": "samples"}; {"prompt": None} where responses are whole
            conversations; {"lengths": "tokens"} for a column with a length for each response.
        out: A file for the rows as JSON lines, written whole or not at all; one that is there is replaced.
        engine: The device for the reward model.

    Returns:
        The rows, each with its number ``row`` in the data set, the number ``candidate`` of the response, its ``reward``
        and, of an ensemble, its ``uncertainty``; of pairs twice, as in ``reward_chosen`` and ``reward_rejected``.

    Raises:
        LensmithError: A row that is not a prompt with N responses, or was not embedded (the message names it); limits
            out of range; limits of uncertainty with one head; or no prompt within the limits, which says why.
        ValueError: Unknown columns, or an output that is the input.
        TypeError: Arguments of another type.
    """
    require_kind(reward_model, RewardModel, "reward_model")
    names = _columns(columns)
    source = open_source(dataset)
    if out is not None and source.name == os.fspath(out):
        raise ValueError(f"out: expected another file than the data set, found {source.name}")
    # Numbers are checked for their type here, for their range by the engine.
    options = settings(
        form=form,
        min_reward=min_reward,
        min_margin=min_margin,
        max_uncertainty=max_uncertainty,
        uncertainty_penalty=uncertainty_penalty,
        min_length=min_length,
        max_length=max_length,
    )
    vectors, per_prompt = _candidates(candidates)
    lines, has = _lines(source, names, "prompt" in (columns or {}), length)
    using = core(engine or still_open(reward_model._engine))
    written, summary = _lensmith.select(
        using, reward_model._core, vectors, per_prompt, lines, has, options
    )
    if out is not None:
        with whole_file(Path(out)) as file:
            file.write(written.encode())
    found = json.loads(summary)
    return Selection(
        rows=[json.loads(line) for line in written.split("\n")[:-1]],
        prompts=found["prompts"],
        left_out=found["left_out"],
        reward=found["reward"],
        random=found["random"],
    )


def _columns(columns: Mapping[str, str | None] | None) -> dict[str, str | None]:
    unknown = sorted(set(columns or {}) - set(COLUMNS))
    if unknown:
        raise ValueError(f"columns: expected keys among {list(COLUMNS)}, found {unknown}")
    return {"prompt": "prompt", "responses": "responses", "lengths": None, **(columns or {})}


def _candidates(candidates: Any) -> tuple[Any, int]:
    """What the engine takes as candidates, and how many there are to a prompt."""
    if isinstance(candidates, str | os.PathLike):
        return [os.fspath(candidates)], 0
    found = candidates.candidates if isinstance(candidates, BestOfN) else candidates
    shape = tuple(getattr(found, "shape", ()))
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"candidates: expected 3 dimensions [prompts, N, d], a BestOfN or a folder, found shape {list(shape)}"
        )
    found = found.detach() if getattr(found, "requires_grad", False) else found
    return found.reshape(shape[0] * shape[1], shape[2]), int(shape[1])


def _lines(
    source: Source, names: Mapping[str, str | None], asked: bool, length: Callable[[Any], int] | None
) -> tuple[bytes, tuple[bool, bool]]:
    """Rows as the engine reads them, a line of JSON each, and whether they have a prompt and lengths."""
    responses, prompt, lengths = names["responses"], names["prompt"], names["lengths"]
    if responses is None:
        raise ValueError("columns: expected a name for responses, found None")
    needed = {responses, *([lengths] if lengths else []), *([prompt] if asked and prompt else [])}
    lines: list[str] = []
    for where, row in source.rows((needed, needed | {name for name in names.values() if name})):
        if not isinstance(row, Mapping):
            raise InvalidRow(f"{where}: expected a row with columns (a dict), found {type(row).__name__}")
        if not lines and not asked and prompt not in row:
            prompt = None
        kept: dict[str, Any] = {"responses": _plain(row.get(responses))}
        if prompt is not None:
            kept["prompt"] = _turns(row.get(prompt))
        if isinstance(kept["responses"], list):
            kept["responses"] = [_turns(response) for response in kept["responses"]]
        if length is not None and isinstance(kept["responses"], list):
            kept["lengths"] = [int(length(response)) for response in kept["responses"]]
        elif lengths is not None:
            kept["lengths"] = _plain(row.get(lengths))
        try:
            lines.append(json.dumps(kept))
        except TypeError as error:
            raise InvalidRow(f"{where}: expected text or messages, found something else: {error}") from None
    return "\n".join(lines).encode(), (prompt is not None, length is not None or lengths is not None)


def _plain(value: Any) -> Any:
    """Lists in place of tuples and arrays."""
    return value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, tuple) else value


def _turns(value: Any) -> Any:
    """Messages as a list of dictionaries, in whatever form a library keeps them; what is none is left to the engine."""
    try:
        return value if isinstance(value, str) else messages_of(value)
    except InvalidRow:
        return value
