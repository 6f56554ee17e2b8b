"""What a run says when the places that it writes to let it down: disk, quota, permission, folder.

Nothing that was whole is lost by it: files appear whole or not at all, and a run goes on from its
last checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from inrun.attributor import Processes
from inrun.files import trouble_of
from inrun.train import checkpoint
from inrun.train.distributed import silence_told
from inrun.train.folder import RunFolder


class StorageError(RuntimeError):
    """A place does not let a run read or write; what was stored before is whole."""


@contextmanager
def storage_told(files: RunFolder) -> Iterator[None]:
    """In this block an error that the place is to blame for is a StorageError.

    It says what is safe and how to go on. Other errors pass.
    """
    began = files.path.exists()
    try:
        yield
    except (OSError, SafetensorError) as error:
        words = trouble_of(error)
        if not words and began and not files.path.exists():
            words = "the folder is not there any more"
        if not words:
            raise
        raise StorageError(f"{files.path}: {words}. {_what_is_safe(files)}") from error


@contextmanager
def endings_told(files: RunFolder, processes: Processes, timeout: int) -> Iterator[None]:
    """In this block what is not the run's own fault ends with words that say how to go on."""
    with storage_told(files), silence_told(processes, timeout, files.path):
        yield


def _what_is_safe(files: RunFolder) -> str:
    try:
        found = files.checkpoints() if files.is_run else None
    except OSError:
        found = None
    if found is None:
        return "The run has not begun. Next: make room, or choose another place (runs=, data_root=)"
    step = checkpoint.step_of(found[-1]) if found else 0
    return (
        f"What the run stored up to step {step} is whole. Next: make room there, or make it "
        f"writable; resume={files.path} then goes on from step {step}"
    )
