"""DuckDB over the parts of a store: a view for each table, whose files are those of the list.

A part's checksum is looked at when a question first needs it; a part that is damaged or missing is
an error that names it. Every question sees one snapshot of the lists.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa

from inrun.files import partials
from inrun.store import snapshot
from inrun.store.fence import tables_of
from inrun.store.parts import TABLES, Part, StoreError, state_of

# Errors of the question, not of the files.
_ASKED_WRONGLY = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.PermissionException,
)
_ATTEMPTS = 5
_MISSING_TABLE = re.compile(r"Table with name \"?(\w+)\"? does not exist")


class Tables:
    """The tables of a store as views of an in-memory DuckDB that keeps nothing but its working
    memory.
    """

    def __init__(self, store: Path, run: dict, threads: int | None, memory: str) -> None:
        self.store, self.run = store, run
        self._threads = threads or min(4, _cores())
        # readable by nobody else, and gone with the reader, also with one that nobody closes
        spill = tempfile.mkdtemp(prefix="inrun-store-")
        self._remove_spill = weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        self._connection = duckdb.connect(
            config={
                "threads": str(self._threads),
                "memory_limit": memory,
                "temp_directory": spill,
                # nothing here needs one, and none is to be downloaded
                "autoinstall_known_extensions": "false",
            }
        )
        # a question reads the parts of this store and no other file, whatever it names
        self._root = store.resolve()
        allowed = {self._root.as_posix(), _without_globs(self._root)}
        for fence in (
            f"SET allowed_directories = [{', '.join(map(text, sorted(allowed)))}]",
            "SET enable_external_access = false",
            "SET python_enable_replacements = false",
            "SET lock_configuration = true",
        ):
            self._connection.execute(fence)
        self._views: dict[str, str | None] = {}  # the query of each view
        self._seen: tuple[tuple, snapshot.Snapshot] | None = None
        self._checked: dict[
            Part, tuple | None
        ] = {}  # state of the file when its checksum was looked at

    def sql(self, query: str) -> pa.Table:
        """The answer to one SELECT. DuckDB's own errors tell what is wrong with a query."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            seen = self.now()
            try:
                return self.ask(query, seen)
            except _ASKED_WRONGLY:
                raise
            except (duckdb.Error, StoreError):
                # a resume or a compaction may have replaced the parts that were being read
                if not attempts_left or self.now() == seen:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def now(self) -> snapshot.Snapshot:
        """The parts as the lists have them at this moment."""
        state = snapshot.state(self.store, self.run)
        if self._seen is None or self._seen[0] != state:
            self._seen = state, snapshot.take(self.store, self.run["id"])
        return self._seen[1]

    def has(self, table: str) -> bool:
        """Whether there are rows; a sample that has a name is described by it."""
        found = self.now().parts
        return bool(found[table] or (table == "samples" and found["names"]))

    def why_missing(self, table: str) -> str:
        if partials(self.store / table):
            return (
                f"{self.store} has no whole part of {table} yet, only one in writing: wait, or "
                "resume the killed run."
            )
        if table == "terms":
            return f"{self.store} has no values yet: its run has not flushed one whole part."
        return f"{self.store} has no table {table!r}: its run has written none."

    def close(self) -> None:
        self._connection.close()
        self._remove_spill()

    def ask(self, query: str, seen: snapshot.Snapshot) -> pa.Table:
        """The answer to one SELECT about these parts."""
        tables = tables_of(self._connection, query)
        parts = [part for table in tables for part in seen.parts[table]]
        self._check(parts)
        self._make_views(tables, seen)
        try:
            return self._connection.sql(query).to_arrow_table()
        except duckdb.CatalogException as error:
            missing = _MISSING_TABLE.search(str(error))
            name = "" if missing is None else missing.group(1)
            if name in (*TABLES, "values"):
                raise StoreError(self.why_missing("terms" if name == "values" else name)) from error
            raise
        except duckdb.Error as error:
            if not isinstance(error, _ASKED_WRONGLY):
                self._checked.clear()
                try:
                    self._check(parts)
                except StoreError as damage:
                    raise damage from error
            raise

    def _check(self, parts: Iterable[Part]) -> None:
        """Look at the checksums of those parts that this reader has not opened yet."""
        unknown = [part for part in parts if not self._is_checked(part)]
        with ThreadPoolExecutor(self._threads) as pool:
            for part, state in zip(unknown, pool.map(self._check_one, unknown)):
                self._checked[part] = state

    def _is_checked(self, part: Part) -> bool:
        return part in self._checked and self._checked[part] == state_of(part.path(self.store))

    def _check_one(self, part: Part) -> tuple | None:
        state = state_of(part.path(self.store))
        part.check(self.store)
        return state

    def _make_views(self, tables: list[str], seen: snapshot.Snapshot) -> None:
        for table in tables:
            rows = self._rows_of(table, seen)
            if self._views.get(table) == rows:
                continue
            self._views[table] = rows
            if rows is None:
                self._connection.execute(f"DROP VIEW IF EXISTS {table}")
                continue
            self._connection.execute(f"CREATE OR REPLACE VIEW {table} AS {rows}")
            if table == "terms":
                sums = " UNION ALL ".join(
                    f"SELECT sample_id, target, {text(method)} AS method, "
                    f'sum(CAST("{method}" AS DOUBLE)) AS value, '
                    "count(*) AS uses FROM terms GROUP BY sample_id, target"
                    for method in self.run["methods"]
                )
                self._connection.execute(f'CREATE OR REPLACE VIEW "values" AS {sums}')

    def _rows_of(self, table: str, seen: snapshot.Snapshot) -> str | None:
        """The query for all rows of a table; None where there are none."""
        parts, cut = seen.parts[table], seen.cut(table)
        files = ", ".join(text(_without_globs(self._root / table / part.name)) for part in parts)
        # Without hive_partitioning = false a folder like `lr=0.1` above the store would become a
        # column.
        rows = None
        if parts:
            rows = f"SELECT * FROM read_parquet([{files}], hive_partitioning = false)"
            rows += "" if cut is None else f" WHERE step <= {cut}"
        names = self._rows_of("names", seen) if table == "samples" else None
        return rows if names is None else with_names(rows, names)


def text(value: str) -> str:
    """A string literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


def name(column: str) -> str:
    """An identifier of SQL."""
    return '"' + column.replace('"', '""') + '"'


def _without_globs(path: Path) -> str:
    """A path in which no character is taken for a wildcard."""
    return re.sub(r"([\[*?])", r"[\1]", path.as_posix())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_names(samples: str | None, names: str) -> str:
    """The query for the rows of `samples`, and those of the samples of which only the name is
    known.
    """
    names = f"SELECT DISTINCT sample_id, id FROM ({names})"
    if samples is None:
        return names
    new = f"{names} WHERE sample_id NOT IN (SELECT sample_id FROM ({samples}))"
    return f"{samples} UNION ALL BY NAME {new}"
