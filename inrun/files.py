"""Files that are whole or not there, whenever their writer is killed.

A file is written beside its place as `<name>.<process and time>.partial`, synced, and renamed; then
its folder is synced. So a reader sees the former content or the new one. A killed writer leaves a
`*.partial`, which nobody reads; `partials` lists them.

    write_json(folder / "run.json", {"steps": 200})
    write_file(folder / "rows.parquet", lambda path: pq.write_table(rows, path))
    with new_folder(folder / "step-000000100") as unfinished:
        save(unfinished)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

_TROUBLES = {
    "ENOSPC": "no space is left on the disk",
    "EDQUOT": "the quota of the disk is used up",
    "EFBIG": "the file is larger than the system lets it be",
    "EROFS": "the file system is read-only",
    "EACCES": "access is not permitted",
    "EPERM": "it is not permitted",
    "EIO": "the device does not read or write",
    "ESTALE": "the network file system has lost it",
    "ENOTDIR": "a part of the path is a file",
}
#: what a place does to its user, and no bug does: number of an OSError -> words
TROUBLES = {
    getattr(errno, name): words for name, words in _TROUBLES.items() if hasattr(errno, name)
}

_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


def write_file(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """The file that `write(partial)` writes, put into its place in one piece. Returns `path`.

    Several processes may write the same path at once: the last one to finish wins.
    """
    path = Path(path)
    partial = _beside(path)
    try:
        write(partial)
        publish(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    return path


def publish(partial: Path, path: Path) -> None:
    """Make the file `partial` durable, then let it take the place of `path` in one step."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def write_bytes(path: str | Path, content: bytes | memoryview) -> Path:
    """`write_file` of these bytes."""
    return write_file(path, lambda partial: partial.write_bytes(content))


def write_text(path: str | Path, text: str) -> Path:
    """`write_file` of this text, in UTF-8 with the line ends that it has."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> Path:
    """`write_file` of this value as JSON. ValueError if it holds a number that JSON has not."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trouble_of(error: BaseException) -> str:
    """What is wrong with the place that an error came from, "" where the place is not to blame.

    Libraries that write files themselves give the system's number only in their text.

    >>> trouble_of(OSError(errno.ENOSPC, "No space left on device", "runs/a/log.jsonl"))
    'no space is left on the disk (runs/a/log.jsonl)'
    >>> trouble_of(ValueError("a bug"))
    ''
    """
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(_NUMBER, str(error))):
        number = int(told[1] or told[2])
    place = getattr(error, "filename", None)
    words = TROUBLES.get(number or 0, "")
    return f"{words} ({place})" if words and place else words


def remember(path: str | Path, compute: Callable[[], Any]) -> Any:
    """The JSON value in `path`; where there is none, that of `compute()`, which is kept there.

    The result is what was read back in both cases, so that a first and a second call agree (tuples
    are lists, keys are strings).
    """
    if not Path(path).is_file():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    return read_json(path)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends without an error.

    All of its files are synced first. A folder that was at `path` is removed.
    """
    path = Path(path)
    partial = _beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for inside in sorted(partial.rglob("*")):
            sync(inside)
        sync(partial)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def partials(folder: str | Path, name: str = "") -> list[Path]:
    """What killed writers left in a folder: of the file `name`, or of all files."""
    return sorted(Path(folder).glob(f"{name}*{PARTIAL}"))


def sync(path: Path) -> None:
    """Make a file's content, or the renamings and deletions in a folder, durable.

    On Windows, where neither can be opened for this, nothing is done.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{time.time_ns()}{PARTIAL}")
