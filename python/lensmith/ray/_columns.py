"""Columns of embeddings in blocks of Ray Data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from .._pairs import _matrix


def matrix(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    """A column as rows [n, d]: lists of numbers, or the tensors that Ray makes of numpy arrays.

    Raises:
        ValueError: No such column, nulls, or rows of different lengths.
    """
    require_columns(table.column_names, [name])
    column = table[name]
    if not isinstance(column.type, pa.BaseExtensionType):
        return _matrix(pa, column, name)
    chunks = [chunk.to_numpy_ndarray() for chunk in column.chunks]
    if any(chunk.ndim != 2 for chunk in chunks):
        raise ValueError(f"{name}: expected rows of one length, found {column.type}")
    rows: np.ndarray[Any, Any] = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    return np.ascontiguousarray(rows.astype(np.float32) if rows.dtype == np.float64 else rows)


def require_columns(found: list[str], wanted: list[str]) -> None:
    """Raises ValueError where a column is missing."""
    for name in wanted:
        if name not in found:
            raise ValueError(f"expected a column {name!r}, found {', '.join(found) or 'none'}")
