"""In-Run Data Shapley: the worth of every training sample, measured while the model is trained
once.
"""

from importlib import import_module

_PUBLIC = {
    "Attributor": "inrun.attributor",
    "Method": "inrun.methods",
    "ValueStore": "inrun.store",
}

__all__ = ["Attributor", "Method", "ValueStore"]


def __getattr__(name: str):
    # resolved on first use: `inrun.store` alone must not import torch
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
