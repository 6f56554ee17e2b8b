"""What a question to a store may be: a single SELECT over the store's own tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from inrun.store.parts import TABLES, StoreError

#: functions that stand for a table and read nothing
_FUNCTIONS = ("range", "generate_series", "unnest")


def tables_of(connection: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    """The tables that a question names, perhaps some more; all if it names none.

    StoreError if it is not one SELECT, or reads anything that is no table: a file, a function that
    reads files or runs text as a question.
    """
    kinds = [statement.type for statement in connection.extract_statements(query)]
    if kinds != [duckdb.StatementType.SELECT]:
        told = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
        raise StoreError(
            f"sql() answers one question, a single SELECT, and changes nothing; got {told}."
        )
    ((tree,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    named = set(_sources(json.loads(tree)))
    named |= {"names"} if "samples" in named else set()
    named |= {"terms"} if "values" in named else set()
    return [table for table in TABLES if table in named] or list(TABLES)


def _sources(tree: Any) -> Iterator[str]:
    """What a question reads from, as DuckDB's parser sees it."""
    if isinstance(tree, dict):
        function = tree.get("function") if tree.get("type") == "TABLE_FUNCTION" else None
        name = function["function_name"] if function else tree.get("table_name")
        if (function and name not in _FUNCTIONS) or any(mark in str(name) for mark in "/.\\"):
            raise StoreError(
                f"sql() reads the tables {', '.join(TABLES)} and values; {name!r} is none of them."
            )
        if isinstance(name, str):
            yield name.lower()
        for branch in tree.values():
            yield from _sources(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _sources(branch)
