"""DuckDB over the parts of a store: a view for each table, and errors that name the file at
fault.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path

import duckdb
import pyarrow as pa

from inrun.files import partials
from inrun.store import parts, schema
from inrun.store.parts import StoreError

# Errors of the question, not of the files.
_ASKED_WRONGLY = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.PermissionException,
)
_MISSING_TABLE = re.compile(r"Table with name \"?(\w+)\"? does not exist")


class Tables:
    """The tables of a store as views of an in-memory DuckDB that keeps nothing but its working
    memory.
    """

    def __init__(self, store: Path, methods: list[str], threads: int | None, memory: str) -> None:
        self.store, self.methods = store, methods
        # readable by nobody else, and gone with the reader, also with one that nobody closes
        spill = tempfile.mkdtemp(prefix="inrun-store-")
        self._remove_spill = weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        self._connection = duckdb.connect(
            config={
                "threads": str(threads or min(4, _cores())),
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
        self._views: set[str] = set()

    def sql(self, query: str) -> pa.Table:
        try:
            self._make_views()
            self._refuse_all_but_questions(query)
            return self._connection.sql(query).to_arrow_table()
        except duckdb.CatalogException as error:
            missing = _MISSING_TABLE.search(str(error))
            name = "" if missing is None else missing.group(1)
            if name in (*schema.TABLES, "values"):
                raise StoreError(self.why_missing("terms" if name == "values" else name)) from error
            raise
        except duckdb.Error as error:
            if not isinstance(error, _ASKED_WRONGLY):
                self._find_damage(error)
            raise

    def _refuse_all_but_questions(self, query: str) -> None:
        statements = self._connection.extract_statements(query)
        kinds = [statement.type for statement in statements]
        if kinds != [duckdb.StatementType.SELECT]:
            told = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "nothing"
            raise StoreError(
                f"sql() answers one question, a single SELECT, and changes nothing; got {told}."
            )

    def has(self, table: str) -> bool:
        """Whether there are rows; a sample that has a name is described by it."""
        return self._has_parts(table) or (table == "samples" and self._has_parts("names"))

    def _has_parts(self, table: str) -> bool:
        return next((self.store / table).glob("*.parquet"), None) is not None

    def why_missing(self, table: str) -> str:
        if partials(self.store / table):
            return (
                f"{self.store} has no whole part of {table} yet, only one in writing: wait, or "
                "resume the killed run."
            )
        if table == "terms":
            return f"{self.store} has no values yet: its run has not flushed one whole part."
        return f"{self.store} has no table {table!r}: its run has written none."

    def verify(self) -> int:
        paths = sorted(
            path for table in schema.TABLES for path in (self.store / table).glob("*.parquet")
        )
        for path in paths:
            parts.read_part(path)
        return len(paths)

    def close(self) -> None:
        self._connection.close()
        self._remove_spill()

    def _make_views(self) -> None:
        """A view for each table with a whole part. DuckDB lists a view's files anew for each
        query.
        """
        for table in schema.TABLES:
            if table in self._views or not self._has_parts(table):
                continue
            rows = self._rows_of(table)
            self._connection.execute(f"CREATE OR REPLACE VIEW {table} AS {rows}")
            if table == "names":
                own = self._rows_of("samples") if self._has_parts("samples") else None
                self._connection.execute(f"CREATE OR REPLACE VIEW samples AS {with_names(own)}")
            if table == "terms":
                sums = " UNION ALL ".join(
                    f"SELECT sample_id, target, {text(method)} AS method, "
                    f'sum(CAST("{method}" AS DOUBLE)) AS value, '
                    "count(*) AS uses FROM terms GROUP BY sample_id, target"
                    for method in self.methods
                )
                self._connection.execute(f'CREATE OR REPLACE VIEW "values" AS {sums}')
            self._views.add(table)

    def _rows_of(self, table: str) -> str:
        """The query for all rows of a table's parts."""
        files = text(_without_globs(self._root / table) + "/*.parquet")
        # Without hive_partitioning = false a folder like `lr=0.1` above the store would become a
        # column.
        return f"SELECT * FROM read_parquet({files}, hive_partitioning = false)"

    def _find_damage(self, error: duckdb.Error) -> None:
        try:
            self.verify()
        except StoreError as damage:
            raise damage from error


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


def with_names(samples: str | None) -> str:
    """The query for the rows of `samples`, and those of the samples of which only the name is
    known.
    """
    names = "SELECT DISTINCT sample_id, id FROM names"
    if samples is None:
        return names
    new = f"{names} WHERE sample_id NOT IN (SELECT sample_id FROM ({samples}))"
    return f"{samples} UNION ALL BY NAME {new}"
