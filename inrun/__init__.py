"""In-Run Data Shapley: the worth of every training sample, from training once.

What is public is here: the `Attributor`, what it can be told, and the `ValueStore` that it leaves.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrun.attributor import (
        Attributor,
        Audit,
        Compiled,
        Forward,
        Fused,
        Intervals,
        Processes,
        Recording,
        Replay,
        Tap,
        Whole,
    )
    from inrun.methods import FirstOrder, Path, SecondOrder
    from inrun.store import ValueStore

__all__ = [
    "Attributor",
    "Audit",
    "Compiled",
    "FirstOrder",
    "Forward",
    "Fused",
    "Intervals",
    "Path",
    "Processes",
    "Recording",
    "Replay",
    "SecondOrder",
    "Tap",
    "ValueStore",
    "Whole",
]

_METHODS = ("FirstOrder", "Path", "SecondOrder")


def __getattr__(name: str) -> Any:
    # resolved on first use: `inrun.store` alone must not import torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "ValueStore":
        return import_module("inrun.store").ValueStore
    return getattr(import_module("inrun.methods" if name in _METHODS else "inrun.attributor"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
