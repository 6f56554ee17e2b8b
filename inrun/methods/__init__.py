"""The directions V of every method: a sample's value is ``<g_i, V>`` with one V per parameter, the
same for all samples.

A method is a function ``(method, step, target) -> {parameter name: V}``, registered by its kind.
`Step` knows what the optimizer does (updates, slopes, the batch's gradient), `Target` evaluates a
validation loss and its derivatives at this or at moved weights.
"""

from inrun.methods import first_order, path, second_order  # noqa: F401  (each registers its method)
from inrun.methods.base import Method, directions
from inrun.methods.step import Step
from inrun.methods.target import Target, TargetError

__all__ = ["Method", "Step", "Target", "TargetError", "directions"]
