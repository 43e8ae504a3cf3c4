"""Rows of text: from `datasets`, Arrow tables, JSONL and Parquet files or lists, checked one by one."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .._optional import require
from ._render import InvalidRow, Renderer, Text, common_turns, dialogue, messages_of

#: What messages call a row (`row 5`, `data.jsonl, row 5 (line 6)`), and the row.
Row = tuple[str, Mapping[str, Any]]

#: The columns that must be there, and all that are of use.
Wanted = tuple[set[str], set[str]]

BATCH = 1024
EXPECTED = {"responses": "a list of responses", "scores": "a list of scores"}
FILES = "a .jsonl, .jsonl.gz or .parquet file, a `datasets.Dataset`, an Arrow table or a list of dicts"


@dataclass(frozen=True)
class Source:
    """A data set that can be read from the start any number of times."""

    name: str
    #: The rows; of columns that are stored by column, those that are needed.
    rows: Callable[[Wanted], Iterator[Row]]


def open_source(dataset: Any, texts: bool = False) -> Source:
    """The rows of what a user names or passes. With `texts`, items that are no dicts become {"text": item}.

    Raises TypeError for anything else, FileNotFoundError for a path without a file, ValueError for an unknown
    suffix.
    """
    if isinstance(dataset, (str, Path)):
        return _open_file(Path(dataset))
    if isinstance(dataset, Mapping):
        found = f"with the keys {list(dataset)[:8]}"
        raise TypeError(
            f"dataset: expected {FILES}, found a {type(dataset).__name__} {found}: pass one of its values"
        )
    if all(hasattr(dataset, name) for name in ("column_names", "with_format", "__getitem__", "__len__")):
        return Source("the data set", lambda wanted: _hf_rows(dataset, wanted))
    if hasattr(dataset, "__arrow_c_stream__"):
        table = require("pyarrow", "embedding an Arrow table").table(dataset)
        return Source("the table", lambda wanted: _table_rows(table, wanted))
    if not isinstance(dataset, Iterable):
        raise TypeError(f"dataset: expected {FILES}, found {type(dataset).__name__}")
    items = dataset if isinstance(dataset, (list, tuple)) else list(dataset)

    def rows(_: Wanted) -> Iterator[Row]:
        for i, item in enumerate(items):
            yield f"row {i}", {"text": item} if texts and not isinstance(item, Mapping) else item

    return Source("the list", rows)


def _open_file(path: Path) -> Source:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        hint = "for a data set of the Hugging Face hub pass datasets.load_dataset(...)"
        raise FileNotFoundError(f"{path}: expected {FILES}, found {found} there; {hint}")
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        return Source(str(path), lambda _: _json_rows(path))
    if name.endswith((".parquet", ".pq")):
        return Source(str(path), lambda wanted: _parquet_rows(path, wanted))
    raise ValueError(f"{path}: expected {FILES}, found the suffix {path.suffix or 'none'!r}")


def _json_rows(path: Path) -> Iterator[Row]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as lines:
        index = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, row {index} (line {number})"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{where}: expected one JSON object a line, found other text: {error}"
                ) from None
            yield where, row
            index += 1


def _needed(names: list[str], wanted: Wanted) -> list[str]:
    """The columns to read: all where one is missing, so that messages name those that are there."""
    required, useful = wanted
    return [name for name in names if name in useful] if required <= set(names) else names


def _parquet_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    with require("pyarrow.parquet", "embedding a Parquet file").ParquetFile(path) as file:
        batches = file.iter_batches(BATCH, columns=_needed(file.schema_arrow.names, wanted))
        yield from _batches(batches, f"{path}, row")


def _table_rows(table: Any, wanted: Wanted) -> Iterator[Row]:
    return _batches(table.select(_needed(table.column_names, wanted)).to_batches(BATCH), "row")


def _batches(batches: Iterable[Any], label: str) -> Iterator[Row]:
    index = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"{label} {index}", row
            index += 1


def _hf_rows(dataset: Any, wanted: Wanted) -> Iterator[Row]:
    plain = dataset.with_format(None).select_columns(_needed(dataset.column_names, wanted))
    for start in range(0, len(plain), BATCH):
        columns = plain[start : start + BATCH]
        for i in range(len(next(iter(columns.values()), []))):
            yield f"row {start + i}", {name: values[i] for name, values in columns.items()}


@dataclass(frozen=True)
class Example:
    """One row, ready for the tokenizer."""

    texts: list[Text]
    group: int | None = None
    gold: list[float] | None = None
    #: What the responses of a best-of-N set say, text by text.
    said: list[str] | None = None

    def group_or_own(self) -> int:
        """The group; for a row without a prompt, one of its own."""
        return int.from_bytes(self.digest()[:8], "little", signed=True) if self.group is None else self.group

    def digest(self) -> bytes:
        """SHA-256 of everything that the row's embeddings follow from."""
        return hashlib.sha256(json.dumps([self.texts, self.group, self.gold]).encode()).digest()


@dataclass
class Scan:
    """What one pass over all rows found."""

    rows: int
    texts_per_row: int
    skipped: list[str]
    grouped: bool
    #: SHA-256 of the rows of each shard.
    digests: list[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all rows."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()


class Layout:
    """What the columns of a row mean. Subclasses turn a row into its texts."""

    #: What the files of a folder start with.
    kind: str
    #: The columns that it knows.
    names: tuple[str, ...]

    def __init__(self, columns: Mapping[str, str | None] | None, group: str | bool | None = None) -> None:
        unknown = set(columns or {}) - set(self.names)
        if unknown:
            raise ValueError(f"columns: expected keys among {list(self.names)}, found {sorted(unknown)}")
        self.columns: dict[str, str | None] = {**{name: name for name in self.names}, **(columns or {})}
        self.chosen_by_user = set(columns or {})
        self.group = group
        self._with_prompt: bool | None = None
        self._repeated_prompts = 0
        self._index = -1

    def examples(
        self, source: Source, renderer: Renderer, skipped: list[str] | None = None
    ) -> Iterator[Example]:
        """The rows in order. `skipped` collects the names of rows that cannot be embedded; without it they
        raise InvalidRow, which is a ValueError and names the row."""
        self._with_prompt, self._repeated_prompts, self._index = None, 0, -1
        count = 0
        for index, (where, row) in enumerate(source.rows(self.wanted())):
            self._index = index
            try:
                if not isinstance(row, Mapping):
                    raise InvalidRow(f"expected a row with columns (a dict), found {type(row).__name__}")
                example = self.example(row, renderer)
            except InvalidRow as error:
                if skipped is None:
                    raise InvalidRow(f"{where}: {error}") from None
                skipped.append(f"{where}: {error}")
                continue
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            count += 1
            yield example
        if count >= 2 and self._repeated_prompts == count:
            raise ValueError(
                f"{source.name}: every response begins with its own prompt, which would stand there twice: "
                "leave the prompt out with columns={'prompt': None} (--no-prompt), and name it as the group "
                "with group='prompt' (--group-column prompt)"
            )

    def wanted(self) -> Wanted:
        """The columns to read."""
        useful = {column for column in self.columns.values() if column is not None}
        useful |= {self.group} if isinstance(self.group, str) else set()
        optional = {"prompt", "scores"} - self.chosen_by_user
        return useful - {self.columns.get(name) for name in optional}, useful

    def example(self, row: Mapping[str, Any], renderer: Renderer) -> Example:
        """The texts of one row; raises InvalidRow without the row's name."""
        raise NotImplementedError

    def value(self, row: Mapping[str, Any], name: str) -> Any:
        """The value of a column that must be there and must not be None."""
        column = self.columns[name]
        if column is None or column not in row:
            hint = "" if name in self.chosen_by_user else f"; columns={{{name!r}: ...}} names another"
            raise ValueError(f"expected a column {column!r}, found {list(row)[:12]}{hint}")
        if row[column] is None:
            expected = EXPECTED.get(name, "text or messages")
            raise InvalidRow(f"column {column!r}: expected {expected}, found None")
        return row[column]

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """The prompt, or None where the data set has no such column; the first row tells."""
        if self._with_prompt is None:
            asked = "prompt" in self.chosen_by_user and self.columns["prompt"] is not None
            self._with_prompt = asked or self.columns["prompt"] in row
        return self.value(row, "prompt") if self._with_prompt else None

    def note_repeated(self, prompt: Any, responses: Iterable[Any]) -> None:
        """Counts rows all of whose responses begin with the prompt's own text."""
        if isinstance(prompt, str) and prompt:
            self._repeated_prompts += all(isinstance(r, str) and r.startswith(prompt) for r in responses)


class Pairs(Layout):
    """Preference pairs: `chosen`, `rejected` and, where there is one, `prompt`."""

    kind = "pairs"
    names = ("chosen", "rejected", "prompt")

    def example(self, row: Mapping[str, Any], renderer: Renderer) -> Example:
        prompt = self.prompt(row)
        sides = [self.value(row, name) for name in ("chosen", "rejected")]
        self.note_repeated(prompt, sides)
        texts = []
        for name, response in zip(("chosen", "rejected"), sides, strict=True):
            try:
                texts.append(renderer.render(prompt, response))
            except InvalidRow as error:
                raise InvalidRow(f"{name}: {error}") from None
        return Example(texts, group=self._group(row, prompt, sides))

    def _group(self, row: Mapping[str, Any], prompt: Any, sides: list[Any]) -> int | None:
        if self.group is False:
            return None
        if isinstance(self.group, str):
            if self.group not in row:
                raise ValueError(f"group: expected a column {self.group!r}, found {list(row)[:12]}")
            value = row[self.group]
            if value is None:
                raise InvalidRow(f"column {self.group!r}: expected a group, found None")
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            return int(value) if whole and -(2**63) <= int(value) < 2**63 else group_id(value)
        if prompt is not None:
            return group_id(prompt if isinstance(prompt, str) else messages_of(prompt))
        talks = (dialogue(side) if isinstance(side, str) else messages_of(side) for side in sides)
        shared = common_turns(*talks)
        return group_id(shared) if shared else None


class Candidates(Layout):
    """Best-of-N sets: `responses`, and where there are some `prompt` and `scores` (gold)."""

    kind = "candidates"
    names = ("responses", "scores", "prompt")

    def __init__(self, columns: Mapping[str, str | None] | None, gold: Any = None) -> None:
        super().__init__(columns)
        self.gold = gold
        self._per_prompt: int | None = None
        self._scored: bool | None = None

    def examples(
        self, source: Source, renderer: Renderer, skipped: list[str] | None = None
    ) -> Iterator[Example]:
        self._per_prompt = self._scored = None
        yield from super().examples(source, renderer, skipped)
        if self.gold is not None and self._index + 1 != len(self.gold):
            raise ValueError(
                f"gold: expected a row for each of {self._index + 1} prompts, found {len(self.gold)}"
            )

    def example(self, row: Mapping[str, Any], renderer: Renderer) -> Example:
        prompt, responses = self.prompt(row), self.value(row, "responses")
        if not isinstance(responses, (list, tuple)):
            raise InvalidRow(f"responses: expected a list, found {type(responses).__name__}")
        per_prompt = self._per_prompt or len(responses)
        if len(responses) != per_prompt or per_prompt < 2:
            expected = f"{self._per_prompt}, as in the first row" if self._per_prompt else "2 or more"
            raise InvalidRow(f"responses: expected {expected}, found {len(responses)}")
        self.note_repeated(prompt, responses)
        texts = []
        for i, response in enumerate(responses):
            try:
                texts.append(renderer.render(prompt, response))
            except InvalidRow as error:
                raise InvalidRow(f"response {i}: {error}") from None
        gold = self._gold(row, per_prompt)
        self._per_prompt = per_prompt
        said = [text for response in responses for text in said_in(response)]
        return Example(texts, gold=gold, said=said)

    def _gold(self, row: Mapping[str, Any], per_prompt: int) -> list[float] | None:
        if self.gold is not None:
            if self._index >= len(self.gold):
                raise ValueError(f"gold: expected a row for each prompt, found {len(self.gold)} rows")
            scores = self.gold[self._index]
        else:
            if self._scored is None:
                asked = "scores" in self.chosen_by_user and self.columns["scores"] is not None
                self._scored = asked or self.columns["scores"] in row
            if not self._scored:
                return None
            scores = self.value(row, "scores")
        scores = scores.tolist() if hasattr(scores, "tolist") else scores
        if not isinstance(scores, (list, tuple)) or len(scores) != per_prompt:
            found = len(scores) if isinstance(scores, (list, tuple)) else type(scores).__name__
            raise InvalidRow(f"scores: expected a list of {per_prompt}, one a response, found {found}")
        for i, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
                raise InvalidRow(f"scores: expected finite numbers, found {score!r} at {i}")
        return [float(score) for score in scores]


class Texts(Layout):
    """Plain texts or conversations: `text`, and where there is one `prompt`."""

    kind = "embeddings"
    names = ("text", "prompt")

    def example(self, row: Mapping[str, Any], renderer: Renderer) -> Example:
        prompt, text = self.prompt(row), self.value(row, "text")
        self.note_repeated(prompt, [text])
        return Example([renderer.render(prompt, text)])


def said_in(response: Any) -> Iterator[str]:
    """All texts of a response, fields of messages in the order of their names."""
    if isinstance(response, str):
        yield response
    else:
        yield from _texts_in(messages_of(response))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _texts_in(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)


def group_id(prompt: Any) -> int:
    """A prompt as a number: the first 8 bytes of the SHA-256 of its text or messages, as int64."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return int.from_bytes(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little", signed=True
    )


def scan(
    layout: Layout,
    source: Source,
    renderer: Renderer,
    shard_rows: int | None,
    skip: bool,
    done: Callable[[int], None],
) -> Scan:
    """Reads and checks every row once. `shard_rows` None takes about 4,096 texts a shard.

    `done` is told the rows of every shard.
    """
    skipped: list[str] | None = [] if skip else None
    found = Scan(0, 0, [], False, [])
    examples = layout.examples(source, renderer, skipped)
    for first in examples:
        found.texts_per_row = len(first.texts)
        rows = shard_rows or default_shard_rows(found.texts_per_row)
        digest, count = hashlib.sha256(first.digest()), 1
        found.grouped = first.group is not None
        for example in islice(examples, rows - 1):
            digest.update(example.digest())
            found.grouped |= example.group is not None
            count += 1
        found.rows += count
        done(count)
        found.digests.append(digest.hexdigest())
    found.skipped = skipped or []
    if found.rows == 0:
        why = (
            f": all {len(found.skipped)} were left out, the first: {found.skipped[0]}"
            if found.skipped
            else ""
        )
        raise ValueError(f"{source.name}: expected rows to embed, found none{why}")
    return found


def default_shard_rows(texts_per_row: int) -> int:
    """Rows of a shard of about 4,096 texts."""
    return max(1, 4096 // texts_per_row)
