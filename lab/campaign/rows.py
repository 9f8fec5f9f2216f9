# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of a store as values: by the names of their columns, checked by the types of their fields."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from lab.errors import EvidenceError

T = TypeVar("T")
#: Of a query's parameters, by position or by name.
Values = Sequence[object] | Mapping[str, object]


def select(
    connection: sqlite3.Connection, query: str, values: Sequence[object] | Mapping[str, object] = ()
) -> Iterator[sqlite3.Row]:
    """Yield what a query finds, by the names of its columns."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    yield from cursor.execute(query, values)


def read_rows(connection: sqlite3.Connection, kind: type[T], query: str, values: Values = ()) -> Iterator[T]:
    """Yield what a query finds as values, whose fields the query's columns are named by.

    :raise EvidenceError: a row is none of this lab's
    """
    for row in select(connection, query, values):
        try:
            yield msgspec.convert(dict(row), kind, strict=False)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise EvidenceError(f"a row of the store is no {kind.__name__} of this lab: {error}") from error
