"""The directions V of every method: a sample's value is ``<g_i, V>`` with one V per parameter, the
same for all samples.

A method is a function ``(options, step, target) -> {parameter name: V}``, registered with its
options by its kind. `Step` knows what the optimizer does (updates, slopes, the batch's gradient),
`Target` evaluates a validation loss and its derivatives at this or at moved weights.
"""

from inrun.methods.base import Method, directions, method
from inrun.methods.first_order import FirstOrder
from inrun.methods.path import Path
from inrun.methods.second_order import SecondOrder
from inrun.methods.step import Step
from inrun.methods.target import Target
from inrun.methods.untouched import NonFiniteTargetError, TargetError

__all__ = [
    "FirstOrder",
    "Method",
    "NonFiniteTargetError",
    "Path",
    "SecondOrder",
    "Step",
    "Target",
    "TargetError",
    "directions",
    "method",
]
