"""First order: ``V = (du/dG)^T grad L(w)``.

For SGD this is the paper's ``eta grad L(w)`` (Wang et al. 2025, equation of section 4.1). For an
adaptive optimizer the slope of the update is taken with the state frozen before the step
("previous"), or as the secant along the step ("current").
"""

from torch import Tensor

from inrun.methods.base import Method, method
from inrun.methods.step import Step
from inrun.methods.target import Target


@method("first_order")
def first_order(what: Method, step: Step, target: Target) -> dict[str, Tensor]:
    gradient = target.gradient()
    if what.known_before:
        return {name: step.frozen(what, name, g) for name, g in gradient.items()}
    return {
        name: step.pull_back(what, name, g) for name, g in gradient.items() if name in step.gradient
    }
