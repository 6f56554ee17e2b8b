"""How a command ends that could not do what it was asked."""

from __future__ import annotations

import contextlib
import sys
from typing import NoReturn

import duckdb
from rich.console import Console

from inrun.attributor import BalanceError, NonFiniteError, ProcessError
from inrun.config import ConfigError
from inrun.data.errors import DataError
from inrun.methods import TargetError
from inrun.report import ReportError
from inrun.store import StoreError
from inrun.train import (
    CheckpointError,
    Interrupted,
    NonFiniteLossError,
    RunFolderError,
    StorageError,
)
from inrun.train.precision import PrecisionError

#: what a user can act on from the message alone; anything else keeps its traceback
EXPECTED = (
    BalanceError,
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    NonFiniteLossError,
    OSError,
    PrecisionError,
    ProcessError,
    ReportError,
    RunFolderError,
    StorageError,
    StoreError,
    TargetError,
    duckdb.Error,
)


def ended(error: Exception) -> NoReturn:
    """One message on stderr and status 1, or 128 + its number for a signal.

    Raises `error` again if it is nobody's but ours.
    """
    console = Console(stderr=True)
    if isinstance(error, Interrupted):
        with contextlib.suppress(OSError):  # a terminal that was closed
            console.print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
        sys.exit(128 + error.signum)
    if not isinstance(error, EXPECTED):
        raise error
    text = f"{type(error).__name__}: {error}"
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
