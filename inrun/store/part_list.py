"""The list of a store's parts: one append-only file for each rank, `parts/rank0000.jsonl`.

A line is written for each flush, after its parts are durable, and synced; so the rows of a flush
are there together or not at all. A resume cuts by one more line. Every line is a JSON array,

    ["<its length>", "<sha256 of the former line's sha256 and the entry>", {entry}]

so that a line that was altered, moved or lost in the middle is found. What a kill left of a last
line is shorter than the length that it states, and is not seen.

The first entry says run and rank. Those after it have
    added: parts, see `parts.Part`
    removed: [table, name] of parts that hold no longer
    through: the last step of which all rows of this rank are in the list
    closed: whether the writer has ended in order
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from inrun.files import sync, write_bytes
from inrun.store.parts import Part, StoreError, entry_of, part_of

FOLDER = "parts"

_LENGTH = 10
_START = len('["') + _LENGTH + len('", "') + 64 + len('", ')
_END = len("]\n")


class _Line(NamedTuple):
    """A whole line: its entry, its digest, where it ends in the file."""

    entry: dict[str, Any]
    digest: str
    end: int


@dataclass(frozen=True)
class PartList:
    """What one rank's list says, as of its last whole line."""

    path: Path
    "The file."
    rank: int
    "Whose parts these are."
    parts: tuple[Part, ...]
    "The parts that hold, in the order of their writing."
    through: int
    "The last step of which all rows are here; -1 before the first."
    closed: bool
    "Whether its writer has ended in order."
    serial: int
    "The number that the next part gets."
    digest: str
    "Of the last line."
    size: int
    "Bytes of the whole lines."

    @classmethod
    def create(
        cls, store: Path, run_id: str, rank: int, parts: Sequence[Part] = (), after: int = 0
    ) -> PartList:
        """A closed list of these parts, or a new one of none, durable and in the place of the
        former one when this returns.

        after: the last serial number that was given.
        """
        path, serial = list_path(store, rank), after + 1
        path.parent.mkdir(exist_ok=True)
        sync(store)
        content, digest = _line("", {"run": run_id, "rank": rank, "serial": serial})
        through = max((part.last for part in parts), default=-1)
        if parts:
            line, digest = _line(digest, _entry(parts, (), through, closed=True))
            content += line
        write_bytes(path, content)
        return cls.read(store, run_id, rank)

    @classmethod
    def read(cls, store: Path, run_id: str, rank: int) -> PartList:
        """What the list of a rank says. StoreError if it is missing, damaged, or of another run."""
        path = list_path(store, rank)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"{path} is missing ({error.strerror}): without it nobody knows which files are "
                f"parts of rank {rank}. Restore it from a copy."
            ) from error
        head, *entries = _entries(path, content) or [_Line({}, "", 0)]
        if head.entry.get("rank") != rank:
            raise _damaged(path, 1)
        if head.entry.get("run") != run_id:
            raise StoreError(
                f"{path} is the list of another run ({head.entry.get('run')!r}, this is "
                f"{run_id!r}). Restore it from a copy."
            )
        try:
            return cls._replayed(path, rank, head, entries)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}). Restore it from a copy.") from error

    @classmethod
    def _replayed(cls, path: Path, rank: int, head: _Line, lines: list[_Line]) -> PartList:
        there: dict[tuple[str, str], Part] = {}
        serial, through, closed = head.entry["serial"], -1, False
        for line in lines:
            for table, name in line.entry["removed"]:
                del there[table, name]
            for entry in line.entry["added"]:
                part = part_of(entry)
                there[part.table, part.name] = part
            serial += len(line.entry["added"])
            through, closed = line.entry["through"], line.entry["closed"]
        last = lines[-1] if lines else head
        return cls(
            path, rank, tuple(there.values()), through, closed, serial, last.digest, last.end
        )

    def append(
        self,
        added: Sequence[Part] = (),
        removed: Sequence[Part] = (),
        through: int | None = None,
        closed: bool = False,
    ) -> PartList:
        """Say in one line that these parts are there and those are not; durable when this returns.

        What a kill left after the last whole line is cut off.
        """
        through = self.through if through is None else through
        line, digest = _line(self.digest, _entry(added, removed, through, closed))
        descriptor = os.open(self.path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.lseek(descriptor, self.size, os.SEEK_SET)
            if b"\n" in os.read(descriptor, os.fstat(descriptor).st_size):
                raise StoreError(f"{self.path} has grown by another writer. Go on with that one.")
            os.ftruncate(descriptor, self.size)
            os.lseek(descriptor, self.size, os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        gone = {(part.table, part.name) for part in removed}
        kept = [part for part in self.parts if (part.table, part.name) not in gone]
        return replace(
            self,
            parts=(*kept, *added),
            through=through,
            closed=closed,
            serial=self.serial + len(added),
            digest=digest,
            size=self.size + len(line),
        )


def list_path(store: Path, rank: int) -> Path:
    """Where the list of a rank lies."""
    return store / FOLDER / f"rank{rank:04d}.jsonl"


def _entry(
    added: Sequence[Part], removed: Sequence[Part], through: int, closed: bool
) -> dict[str, Any]:
    return {
        "added": [entry_of(part) for part in added],
        "removed": [[part.table, part.name] for part in removed],
        "through": through,
        "closed": closed,
    }


def _line(former: str, entry: dict[str, Any]) -> tuple[bytes, str]:
    """A line of the list, and its digest."""
    return _framed(former, json.dumps(entry, allow_nan=False).encode())


def _framed(former: str, body: bytes) -> tuple[bytes, str]:
    digest = hashlib.sha256(former.encode() + body).hexdigest()
    length = f"{_START + len(body) + _END:0{_LENGTH}d}"
    return b'["%b", "%b", %b]\n' % (length.encode(), digest.encode(), body), digest


def _entries(path: Path, content: bytes) -> list[_Line]:
    """Every whole line. StoreError for one that is not what was written."""
    lines: list[_Line] = []
    former, start = "", 0
    while (end := content.find(b"\n", start) + 1) > 0:
        body = content[start + _START : end - _END]
        line, digest = _framed(former, body)
        if line != content[start:end]:
            raise _damaged(path, len(lines) + 1)
        lines.append(_Line(json.loads(body), digest, end))
        former, start = digest, end
    if not _is_unfinished(content[start:]):
        raise _damaged(path, len(lines) + 1)
    return lines


def _is_unfinished(tail: bytes) -> bool:
    """Whether it is what a kill or a loss of power leaves of a line that was being appended."""
    stated, there = tail[2 : 2 + _LENGTH], len(tail.rstrip(b"\0"))
    return not (stated.isdigit() and there >= int(stated))


def _damaged(path: Path, number: int) -> StoreError:
    return StoreError(
        f"{path} is damaged (line {number} is not what was written). Restore it from a copy."
    )
