"""Turns a backward pass into dot products of per-sample gradients with directions, without holding
per-sample gradients.
"""

from inrun.ghost.buffers import GradientBuffers
from inrun.ghost.compiled import CompiledProbes
from inrun.ghost.errors import MixedSamplesError, UncoveredUseError
from inrun.ghost.forward import ForwardRouteError, token_dots
from inrun.ghost.modes import Substitute
from inrun.ghost.tape import StreamingDots, Tape
from inrun.ghost.uses import UseTracker
from inrun.ghost.whole import WholeDots, WholeGradients, WholeRouteError, WholeTape

__all__ = [
    "CompiledProbes",
    "ForwardRouteError",
    "GradientBuffers",
    "MixedSamplesError",
    "StreamingDots",
    "Substitute",
    "Tape",
    "UncoveredUseError",
    "UseTracker",
    "WholeDots",
    "WholeGradients",
    "WholeRouteError",
    "WholeTape",
    "token_dots",
]
