"""A table is a folder of parts: files that are whole or not there, whenever their writer is killed.

A part is written by `inrun.files.write_file`: beside its place, synced, renamed. Its name tells
rank, first and last step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inrun.files import partials, sync, write_file

_ROW_GROUP = (
    122_880  # rows; DuckDB's own size: the unit that its threads share out and hold in memory
)

_NAME = re.compile(r"rank(\d{4,})-(\d{9,})-(\d{9,})\.parquet")


class StoreError(ValueError):
    """A store that cannot be read or written as asked; the message says which file or key, and what
    to do.
    """


@dataclass(frozen=True, order=True)
class Part:
    """One whole parquet file of a table."""

    rank: int
    "The process that wrote it."
    first: int
    "The first step that it may contain."
    last: int
    "The last step that it may contain."
    path: Path
    "Where it lies."

    @staticmethod
    def name(rank: int, first: int, last: int) -> str:
        return f"rank{rank:04d}-{first:09d}-{last:09d}.parquet"


def parts(store: Path, table: str) -> list[Part]:
    """The whole parts of a table, by rank and step; `.partial` leftovers are not among them."""
    found = []
    for path in (store / table).glob("*.parquet"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise StoreError(
                f"{path} is not named like a part of a store "
                "(rank0000-000000000-000000199.parquet). Move it elsewhere."
            )
        rank, first, last = (int(group) for group in match.groups())
        found.append(Part(rank, first, last, path))
    return sorted(found)


def read_part(path: Path) -> pa.Table:
    """The rows of one file, checksums checked. StoreError that names the file if it is damaged."""
    try:
        # Without partitioning=None a folder like `lr=0.1` above the store would become a column.
        return pq.read_table(path, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        match = _NAME.fullmatch(path.name)
        if match is None:
            remedy = "delete it and write the samples again through a resumed ValueWriter"
        else:
            first = int(match.group(2))
            remedy = (
                f"delete it and go on from a checkpoint of step {first} or earlier through "
                "ValueWriter.resume"
            )
        reason = str(error).splitlines()[0]
        raise StoreError(
            f"{path} is damaged ({reason}). Restore it from a copy; or {remedy}."
        ) from error


def write_part(table: pa.Table, path: Path) -> None:
    """Write `table` beside `path` and rename it into place when it is on disk, with checksummed
    pages.

    Words are kept as dictionaries, numbers are not: no two values are equal, and a dictionary of
    them makes a row of two values 16 bytes long where it takes 10 (batch 16 to 512 of 320k samples,
    zstd).
    """

    def write(partial: Path) -> None:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            use_dictionary=[field.name for field in table.schema if not _is_number(field.type)],
            column_encoding={
                f.name: "DELTA_BINARY_PACKED" for f in table.schema if pa.types.is_integer(f.type)
            },
            row_group_size=_ROW_GROUP,
            write_page_checksum=True,
        )

    write_file(path, write)


def drop_from(store: Path, table: str, step: int, only_rank: int | None) -> None:
    """Delete a table's rows of `step` and later, newest parts first, so that a kill never leaves a
    hole.
    """
    for part in reversed(parts(store, table)):
        if part.last < step or only_rank not in (None, part.rank):
            continue
        if part.first >= step:
            part.path.unlink()
        else:
            rows = read_part(part.path)
            kept = rows.filter(pc.less(rows["step"], step))
            # First the new content under the old name, then the new name: at no moment are rows
            # seen twice.
            write_part(kept, part.path)
            part.path.rename(part.path.with_name(Part.name(part.rank, part.first, step - 1)))
        sync(store / table)


def remove_partials(store: Path) -> None:
    """Delete what killed writers left half-written."""
    for folder in (store, *(inside for inside in store.iterdir() if inside.is_dir())):
        for leftover in partials(folder):
            leftover.unlink()


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
