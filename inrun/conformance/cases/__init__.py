"""The cases. Each says what an engine that fails it gets wrong; many of these mistakes are in
public code.

Weights are small and learning rates large, so that second-order terms and the curvature of adaptive
updates are a visible part of every value.
"""

from inrun.conformance.cases.layers import LAYERS
from inrun.conformance.cases.losses import LOSSES
from inrun.conformance.cases.methods import METHODS, OPTIMIZERS
from inrun.conformance.cases.steps import REST, STEPS
from inrun.conformance.problem import Case

#: all of them, in the order of the table
CASES: tuple[Case, ...] = (*LAYERS, *LOSSES, *STEPS, *REST, *METHODS, *OPTIMIZERS)

__all__ = ["CASES"]
