"""Columns of figures: learning curves and comparisons."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ._optional import require


class Table:
    """Columns of equal length under names.

    ``table["loss"]`` is a numpy array; ``table.to_pandas()`` a data frame; ``pyarrow.table(table)`` and
    ``polars.DataFrame(table)`` take it as it is.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        self._columns = {name: _array(values) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns: expected one length, found {lengths}")

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
        """A table of dictionaries; what one lacks is None."""
        return cls({name: [row.get(name) for row in rows] for name in columns})

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __getitem__(self, column: str) -> np.ndarray:
        try:
            return self._columns[column]
        except KeyError:
            raise KeyError(f"no column {column!r}; columns: {', '.join(self._columns)}") from None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries."""
        for i in range(len(self)):
            yield {name: _plain(values[i]) for name, values in self._columns.items()}

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns as lists."""
        return {name: [_plain(value) for value in values] for name, values in self._columns.items()}

    def to_pandas(self) -> Any:
        """A pandas data frame."""
        return require("pandas", "Table.to_pandas()").DataFrame(self._columns)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table for libraries that read Arrow."""
        table = require("pyarrow", "Arrow export").table(self.to_dict())
        return table.__arrow_c_stream__(requested_schema)

    def _cells(self, shown: int) -> list[list[str]]:
        rows = [[_text(values[i]) for values in self._columns.values()] for i in range(min(shown, len(self)))]
        return [self.columns, *rows]

    def __str__(self) -> str:
        cells = self._cells(60)
        widths = [max(len(row[i]) for row in cells) for i in range(len(self._columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        if len(self) > 60:
            lines.append(f"... {len(self) - 60} more rows")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Table of {len(self)} rows\n{self}"

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self._cells(60)]
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"


def _array(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    if any(value is None for value in values) and all(isinstance(value, int | float | None) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(values)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)
