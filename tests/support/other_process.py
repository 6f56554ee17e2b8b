"""Another process that owns a folder until the block ends, or until it is killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

_OWN = """
import sys
from inrun.owner import Owner
owner = Owner.take(sys.argv[1], RuntimeError)
print("owns", flush=True)
sys.stdin.read()
"""


@contextmanager
def owned_elsewhere(folder: Path) -> Iterator[subprocess.Popen]:
    """The process, which owns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    other = subprocess.Popen(
        [sys.executable, "-c", _OWN, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "owns\n"
        yield other
    finally:
        other.kill()
        other.communicate()
