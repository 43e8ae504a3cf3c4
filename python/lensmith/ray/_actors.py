"""Embeddings and rewards of data sets, by actors that keep a model from batch to batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from .._engine import whole
from .._models import RewardModel
from .._pairs import PairSet, _arrow
from ..embed._model import load_model, load_tokenizer, model_name, parse_dtype
from ..embed._render import Renderer
from ..embed._rows import Example, Pairs, open_source
from ..embed._run import Options, embed_rows
from ._columns import matrix, require_columns
from ._nodes import Place, Resources, on_this_node, ray_options

Pool = int | tuple[int, int]

#: Options of `lensmith.embed` that name a folder, or how it is written, or leave rows out.
_NOT_TAKEN = {"model", "out", "shard_rows", "overwrite", "progress", "skip_invalid"}


def embed(
    dataset: ray.data.Dataset,
    model: str | os.PathLike[str],
    *,
    keep: Sequence[str] = (),
    columns: Mapping[str, str | None] | None = None,
    group: str | bool | None = None,
    actors: Pool = 1,
    resources: Resources | None = None,
    batch_rows: int = 256,
    **options: Any,
) -> ray.data.Dataset:
    """Embeddings of preference pairs: :func:`lensmith.embed` for a data set, by a pool of actors.

    Args:
        dataset: Rows with ``chosen`` and ``rejected``, and perhaps a ``prompt``, as text or as messages.
        model: Name or path of a transformers model; every actor loads it.
        keep: Columns that stay beside the embeddings; all others are left out.
        columns: Other names of the columns, as of :func:`lensmith.embed`.
        group: As of :func:`lensmith.embed`; False gives no groups.
        actors: How many, or the fewest and the most.
        resources: Of an actor, as in {"CPU": 2, "GPU": 1}; by default {"CPU": 1}.
        batch_rows: Pairs that an actor embeds at a time.
        options: The other arguments of :func:`lensmith.embed` but ``out``, ``shard_rows``, ``overwrite``, ``progress`` and
            ``skip_invalid``. ``dtype`` is "f32" or "f16": Arrow has no bfloat16.

    Returns:
        Columns ``chosen`` and ``rejected``, fixed-size lists [d], ``group``, int64 (a pair without a prompt has a number of
        its own), and those of ``keep``.

    Raises:
        ValueError: An option out of range. Rows that cannot be embedded raise LensmithError, with the node, when they are
            read.
    """
    known = {field.name for field in fields(Options)} - _NOT_TAKEN
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"embed() got an unexpected argument {unknown[0]!r}: expected some of {sorted(known)}")
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model: expected a name or a path, which every actor loads, found {type(model).__name__}")
    if options.get("dtype") is not None and str(parse_dtype(options["dtype"])) == "torch.bfloat16":
        raise ValueError("dtype: expected 'f32' or 'f16', found bfloat16, which Arrow lacks")
    # Actors have other working folders.
    found = os.path.abspath(model) if os.path.exists(model) else os.fspath(model)
    asked = {"model": found, "options": options, "columns": columns, "group": group}
    arguments = asked | {"keep": list(keep), "place": Place.of(resources)}
    return _map(dataset, _Embedder, arguments, actors, resources, batch_rows)


class _OwnGroups(Pairs):
    """Pairs of which every one has a group: whether a batch has prompts must not change its columns."""

    def example(self, row: Mapping[str, Any], renderer: Renderer) -> Example:
        example = super().example(row, renderer)
        return example if self.group is False else replace(example, group=example.group_or_own())


class _Embedder:
    def __init__(
        self,
        place: Place,
        model: str,
        options: dict[str, Any],
        columns: Mapping[str, str | None] | None,
        group: str | bool | None,
        keep: list[str],
    ) -> None:
        with on_this_node(f"embedding with {model}"):
            place.require_version()
            asked = Options(model=model, progress=False, **options)
            tokenizer = load_tokenizer(asked.tokenizer, model_name(model), asked.revision, asked.model_kwargs)
            loaded = load_model(
                model,
                "AutoModel",
                dtype=parse_dtype(asked.dtype),
                device=asked.device,
                revision=asked.revision,
                model_kwargs=asked.model_kwargs,
            )
            # What loading it took is not asked of it again.
            self._options = replace(
                asked, model=loaded, tokenizer=tokenizer, device=None, revision=None, model_kwargs=None
            )
            self._layout = (columns, group)
            self._keep = keep
            self._model = model

    def __call__(self, table: pa.Table) -> pa.Table:
        with on_this_node(f"embedding {table.num_rows} rows with {self._model}"):
            require_columns(table.column_names, self._keep)
            rows = embed_rows(_OwnGroups(*self._layout), open_source(table), self._options, None)
            assert rows is not None
            pairs = PairSet(rows["chosen"], rows["rejected"], rows.get("group"))
            made = _arrow(pairs.chosen, pairs.rejected, pairs.group)
            for name in self._keep:
                made = made.append_column(name, table[name])
            return made


def score(
    dataset: ray.data.Dataset,
    model: RewardModel | str | os.PathLike[str],
    *,
    columns: Sequence[str] = ("chosen", "rejected"),
    actors: Pool = 1,
    resources: Resources | None = None,
    batch_rows: int = 4096,
) -> ray.data.Dataset:
    """Rewards of embeddings, by a pool of actors with an engine each.

    Args:
        dataset: Rows with columns of embeddings: lists of d numbers, float32 or float16, or tensors.
        model: A reward model, or its file at a path that every node has.
        columns: The columns of embeddings.
        actors: How many, or the fewest and the most.
        resources: Of an actor, as in {"CPU": 2, "GPU": 1}; by default {"CPU": 1}.
        batch_rows: Rows that an actor scores at a time.

    Returns:
        The data set with a column ``NAME_reward``, float32, for each of ``columns``.
    """
    if isinstance(columns, str) or not columns:
        raise TypeError(f"columns: expected a list of names, found {columns!r}")
    if not isinstance(model, RewardModel | str | os.PathLike):
        raise TypeError(f"model: expected a RewardModel or a path, found {type(model).__name__}")
    found = model if isinstance(model, RewardModel) else os.path.abspath(model)
    arguments = {"model": found, "columns": list(columns), "place": Place.of(resources)}
    return _map(dataset, _Scorer, arguments, actors, resources, batch_rows)


class _Scorer:
    def __init__(self, place: Place, model: RewardModel | str, columns: list[str]) -> None:
        with on_this_node("scoring"):
            place.require_version()
            self._columns = columns
            self._model = RewardModel.load(model) if isinstance(model, str) else model
            self._engine = place.engine()

    def __call__(self, table: pa.Table) -> pa.Table:
        with on_this_node(f"scoring {table.num_rows} rows"):
            for name in self._columns:
                rewards = self._model.score(matrix(table, name), engine=self._engine)
                column = pa.array(np.asarray(rewards, np.float32))
                table = table.append_column(f"{name}_reward", column)
            return table


def _map(
    dataset: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    actors: Pool,
    resources: Resources | None,
    batch_rows: int,
) -> ray.data.Dataset:
    fewest, most = (actors, actors) if isinstance(actors, int) else actors
    fewest, most = whole(fewest, "actors", 1), whole(most, "actors", 1)
    return dataset.map_batches(
        actor,
        batch_size=whole(batch_rows, "batch_rows", 1),
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        fn_constructor_kwargs=arguments,
        **ray_options(resources),
    )
