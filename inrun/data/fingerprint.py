"""The sha256 of whole files, remembered for as long as they are the same files.

A digest is kept with the file's size, inode, and times of its content and of its entry. The second
time moves with every change, also where somebody sets the first one back. A file that was changed
in the last seconds is read again, for two changes may bear the same time.

    with remembered_in(cache):
        fingerprint_files("data/raw")
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from inrun.data.errors import SourceMalformed
from inrun.data.fields import PLAIN, Columns
from inrun.data.listing import list_path, partition_of
from inrun.files import file_sha256, read_json, write_json

MEMORY_FILE = "fingerprints.json"
SETTLED_S = 2.0
_memory: ContextVar[dict[str, Any] | None] = ContextVar("memory of fingerprints", default=None)


def fingerprint_files(path: str, columns: Columns = PLAIN) -> list[dict[str, Any]]:
    """Name, size and sha256 of each file: a changed source gives another corpus."""
    listing = list_path(path, columns)
    prints = []
    for file, name in zip(listing.files, listing.names, strict=True):
        print_of: dict[str, Any] = {"file": name, **_content(file)}
        if by_folder := partition_of(file, columns):
            print_of["columns"] = by_folder
        prints.append(print_of)
    return prints


@contextmanager
def remembered_in(folder: Path) -> Iterator[None]:
    """In this block digests are taken from, and kept in, a file of `folder`."""
    path = folder / MEMORY_FILE
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    before, token = dict(known), _memory.set(known)
    try:
        yield
    finally:
        _memory.reset(token)
        if known != before:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(path, known, indent=0)
            except OSError:
                pass  # it only saves time


def _content(file: Path) -> dict[str, Any]:
    """Size and sha256."""
    memory = _memory.get()
    try:
        about = file.stat()
        size = about.st_size
        key = [size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]
        place = str(file.resolve())
        known = None if memory is None else memory.get(place)
        if isinstance(known, dict) and known.get("key") == key:
            return {"bytes": size, "sha256": known["sha256"]}
        sha256 = file_sha256(file)
    except OSError as error:
        raise SourceMalformed(
            f"{file}: cannot be read ({error}). Next: make it readable, or move it away"
        ) from error
    settled = time.time() - max(about.st_mtime, about.st_ctime) > SETTLED_S
    if memory is not None and settled:
        memory[place] = {"key": key, "sha256": sha256}
    return {"bytes": size, "sha256": sha256}
