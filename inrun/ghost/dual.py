"""Forward-mode derivatives, without the deprecation warning that torch emits at its own expense
when it first loads their formulas.
"""

import functools
import warnings

import torch
import torch.autograd.forward_ad as fwad


@functools.cache
def _load_formulas() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*torch.jit.script.*", category=DeprecationWarning
        )
        with fwad.dual_level():
            fwad.make_dual(torch.zeros(()), torch.zeros(()))


def dual_level() -> fwad.dual_level:
    """``torch.autograd.forward_ad.dual_level``, quietly."""
    _load_formulas()
    return fwad.dual_level()
