"""One owner of a folder: the process that writes there, until it lets go or ends.

The lock is the system's own (`filelock`), so that of a dead process is free. While it is held the
folder has two hidden files: `.lock`, and `.owner.json`, which tells others who holds it.

    owner = Owner.take(folder, RunFolderError)
    try:
        ...
    finally:
        owner.release()

Processes that train together have one owner, the first of them. Within a process the newest taker
owns the folder, and `holds` tells the one before that it does not any more.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from inrun.files import read_json, write_json

LOCK, ABOUT = ".lock", ".owner.json"


class Owner:
    """Holds a folder that is there. Make it with `take`."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder, self.process = folder, os.getpid()
        self._lock, self._file = lock, _inode(folder)

    @classmethod
    def take(cls, folder: str | Path, error: type[Exception]) -> Owner:
        """Own `folder`. Raises `error`, which names the holder, while another process owns it."""
        folder = Path(folder).resolve()
        before = _OWNERS.get(folder)
        if before is not None and before.holds:
            lock = before._lock
        else:
            found = _locked(folder)
            if found is None:
                raise error(
                    f"{folder} is held by {_holder(folder)}. Next: wait for its end, or end it; "
                    "two at once would store values twice"
                )
            lock = found
            try:
                write_json(folder / ABOUT, _about())
            except BaseException:
                lock.release()
                raise
        owner = _OWNERS[folder] = cls(folder, lock)
        if before is not None:
            _FORMER.append(before)
        return owner

    @property
    def holds(self) -> bool:
        """Whether this one owns the folder still."""
        return (
            _OWNERS.get(self.folder) is self
            and self.process == os.getpid()
            and self._file == _inode(self.folder)
        )

    @contextmanager
    def let_go_on_error(self) -> Iterator[None]:
        """Around what is done before there is something that will let go."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go. Twice is allowed, and so is an owner that has been followed by another."""
        if self.holds:
            del _OWNERS[self.folder]
            try:
                (self.folder / ABOUT).unlink(missing_ok=True)
                with suppress(PermissionError):  # Windows keeps a file that is open
                    (self.folder / LOCK).unlink(missing_ok=True)
            finally:
                self._lock.release()


def is_sign_of_owner(path: Path) -> bool:
    """Whether it is a file that owners leave."""
    return path.name.startswith((LOCK, ABOUT))


#: folder -> who owns it in this process
_OWNERS: dict[Path, Owner] = {}
#: kept alive: a lock that is collected is released, in a forked process that of its parent
_FORMER: list[Owner] = []


def _locked(folder: Path) -> FileLock | None:
    """The lock of a folder, None if another process has it.

    An owner that lets go deletes the file, so it may not be the one any more that was locked here.
    """
    while True:
        (folder / LOCK).touch()
        before, lock = _inode(folder), FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if before is not None and before == _inode(folder):
            return lock
        lock.release()


def _about() -> dict[str, str | int]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "since": since}


def _holder(folder: Path) -> str:
    try:
        about = read_json(folder / ABOUT)
        return f"process {about['pid']} on host {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken the lock
        return "another process"


def _inode(folder: Path) -> int | None:
    """Of the lock's file: a folder that was deleted and made again has another."""
    try:
        return (folder / LOCK).stat().st_ino
    except OSError:
        return None
