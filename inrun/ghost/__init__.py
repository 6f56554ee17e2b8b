"""Turns a backward pass into dot products of per-sample gradients with directions, without holding per-sample gradients."""

from inrun.ghost.forward import ForwardRouteError, token_dots
from inrun.ghost.probes import Probes
from inrun.ghost.substitute import Substitute
from inrun.ghost.tape import Dots, KeptMemory, Tape
from inrun.ghost.watch import MixedSamplesError, UncoveredUseError, Watch

__all__ = [
    "Dots",
    "ForwardRouteError",
    "KeptMemory",
    "MixedSamplesError",
    "Probes",
    "Substitute",
    "Tape",
    "UncoveredUseError",
    "Watch",
    "token_dots",
]
