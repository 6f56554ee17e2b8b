"""A table is a folder of parts: parquet files that never change once they are there.

A part is written by `inrun.files.write_file`: beside its place, synced, renamed. Its name tells
rank, first and last step, and a serial number that the rank gives once; its footer tells run,
targets, sign and schema version. Which files are parts is said by the list (`part_list`) alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inrun.files import partials, write_file

TABLES = ("terms", "steps", "ledger", "tokens", "samples", "names")
FOOTER = b"inrun"  # the key of a part's own words in its parquet footer
SAMPLES_FILE = "samples.parquet"

_ROW_GROUP = (
    122_880  # rows; DuckDB's own size: the unit that its threads share out and hold in memory
)
_NAME = re.compile(r"rank(\d{4,})-(\d{9,})-(\d{9,})-(\d{6,})\.parquet")


class StoreError(ValueError):
    """A store that cannot be read or written as asked; the message says which file or key, and what
    to do.
    """


@dataclass(frozen=True)
class Part:
    """One whole parquet file of a table, as the list has it."""

    table: str
    "The table that its rows belong to."
    name: str
    "Its file, in the table's folder."
    rank: int
    "The process that wrote it."
    first: int
    "The first step in it; -1 in `samples`, whose rows belong to no step."
    last: int
    "The last step in it; -1 in `samples`."
    rows: int
    "Number of rows."
    size: int
    "Bytes of the file."
    sha256: str
    "Of the file, in hexadecimal."
    sums: dict[str, float | None] = field(compare=False)
    "The sum of each column of floats, in float64, nulls left out; None if it is not finite."

    def path(self, store: Path) -> Path:
        return store / self.table / self.name

    def check(self, store: Path) -> None:
        """StoreError that names the file unless it is there and has the listed checksum."""
        path = self.path(store)
        try:
            found = digest_of(path)
        except FileNotFoundError as error:
            raise StoreError(
                f"{path} is missing: the list of parts has it, with {self.rows} rows. Restore it "
                f"from a copy; or {self._remedy()}."
            ) from error
        except OSError as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Mend that and ask again."
            ) from error
        if found != self.sha256:
            raise StoreError(
                f"{path} is damaged (its checksum is not the listed one). Restore it from a copy; "
                f"or {self._remedy()}."
            )

    def _remedy(self) -> str:
        if self.first < 0:
            return "delete the store and value again: nothing else says what its samples are"
        return f"go on from a checkpoint of step {self.first} or earlier through ValueWriter.resume"


def part_of(entry: Any) -> Part:
    """A part from its entry in the list. StoreError for one that no writer has made."""
    try:
        part = Part(**{known.name: entry[known.name] for known in fields(Part)})
        known = part.table in TABLES and is_name(part.table, part.name)
    except (KeyError, TypeError) as error:
        raise StoreError(f"an entry of the list of parts is none ({entry!r:.200})") from error
    if not known:  # a name may lead out of the store
        raise StoreError(
            f"{part.table!r}, {part.name!r} in the list of parts is no file of a store"
        )
    return part


def entry_of(part: Part) -> dict[str, Any]:
    """What the list says of a part."""
    return asdict(part)


def is_name(table: str, name: str) -> bool:
    """Whether a part of this table can be called so."""
    return name == SAMPLES_FILE if table == "samples" else _NAME.fullmatch(name) is not None


def part_name(rank: int, first: int, last: int, serial: int) -> str:
    """The file of a part."""
    return f"rank{rank:04d}-{first:09d}-{last:09d}-{serial:06d}.parquet"


def read_part(path: Path) -> pa.Table:
    """The rows of one file, checksums of its pages checked. StoreError if it is damaged."""
    try:
        # Without partitioning=None a folder like `lr=0.1` above the store would become a column.
        rows = pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is damaged ({reason}). Restore it from a copy.") from error
    return rows.replace_schema_metadata(None)


def read_columns(path: Path) -> pa.Schema:
    """The columns of a part, without what its footer says."""
    return pq.read_schema(path).remove_metadata()


def read_footer(path: Path) -> dict[str, Any] | None:
    """What a part says of itself in its footer; None for a file that is no part."""
    try:
        words = (pq.read_schema(path).metadata or {}).get(FOOTER)
        said = None if words is None else json.loads(words)
    except (OSError, pa.ArrowException, ValueError):
        return None
    return said if isinstance(said, dict) else None


def write_part(
    rows: pa.Table, store: Path, table: str, span: tuple[int, int], about: dict, serial: int
) -> Part:
    """Write `rows` as a part of `table`, durable when this returns. It is not in the list yet.

    Words are kept as dictionaries, numbers are not: no two values are equal, and a dictionary of
    them makes a row of two values 16 bytes long where it takes 10 (batch 16 to 512 of 320k samples,
    zstd).

    Args:
        span: first and last step.
        about: what the footer says; `rank` names the file.
        serial: given once to a rank's parts of this table.
    """
    first, last = span
    rank = about["rank"]
    name = SAMPLES_FILE if table == "samples" else part_name(rank, first, last, serial)
    footer = {**about, "table": table, "name": name}
    rows = rows.unify_dictionaries().combine_chunks()
    noted = rows.replace_schema_metadata({FOOTER: json.dumps(footer).encode()})
    found: dict[str, Any] = {}

    def write(partial: Path) -> None:
        pq.write_table(
            noted,
            partial,
            compression="zstd",
            use_dictionary=[field.name for field in rows.schema if not _is_number(field.type)],
            column_encoding={
                f.name: "DELTA_BINARY_PACKED" for f in rows.schema if pa.types.is_integer(f.type)
            },
            row_group_size=_ROW_GROUP,
            write_page_checksum=True,
        )
        found.update(size=partial.stat().st_size, sha256=digest_of(partial))

    (store / table).mkdir(exist_ok=True)
    write_file(store / table / name, write)
    return Part(table, name, rank, first, last, len(rows), sums=_sums(rows), **found)


def digest_of(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def remove_leftovers(store: Path, run_id: str, listed: Iterable[Part]) -> None:
    """Delete what killed writers left: half-written files, and parts of this run that no list
    has.
    """
    for folder in (store, *(inside for inside in store.iterdir() if inside.is_dir())):
        for leftover in partials(folder):
            leftover.unlink()
    known = {(part.table, part.name) for part in listed}
    for path in files(store):
        table = path.parent.name
        if (table, path.name) not in known and (read_footer(path) or {}).get("run") == run_id:
            path.unlink()


def files(store: Path) -> list[Path]:
    """Every parquet file in the folders of the tables, listed or not."""
    return sorted(path for table in TABLES for path in (store / table).glob("*.parquet"))


def _sums(rows: pa.Table) -> dict[str, float | None]:
    found = {}
    for column in rows.schema:
        if pa.types.is_floating(column.type):
            numbers = rows[column.name].drop_null().to_numpy()
            total = float(np.sum(numbers, dtype=np.float64))
            found[column.name] = total if np.isfinite(total) else None
    return found


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
