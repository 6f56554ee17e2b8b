"""Second order: the Shapley value of the loss's quadratic model at w.

For SGD, ``V = eta grad L(w) - eta^2/2 H_L(w) G`` (Wang et al. 2025, section 4.1), with the true
Hessian of the validation loss. For any update that is affine in G, ``u(G) = u(0) + S G``, the
quadratic model's Shapley value has ``V = S^T [grad L(w) - H_L(w) (u(0) + u(G)) / 2]``: the gradient
in the middle of the way from "nobody" to "everybody". Other updates are linearised by their secant.
"""

from dataclasses import dataclass, field

from torch import Tensor

from inrun.methods.base import Method, method
from inrun.methods.step import Step
from inrun.methods.target import Target
from inrun_kernels import memory


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Method):
    """The Shapley value of the loss's quadratic model at w, with the true Hessian.

    >>> SecondOrder(update="sgd", name="paper").name
    'paper'
    """

    kind: str = field(default="second_order", init=False)

    @property
    def needs_present_target(self) -> str:
        return "its Hessian-vector product is along the step's own gradient"


@method("second_order", SecondOrder)
def second_order(what: SecondOrder, step: Step, target: Target) -> dict[str, Tensor]:
    gradient, hvp = target.gradient_and_hvp(step.middle(what))
    differences = {
        name: memory.difference(g, hvp[name])
        for name, g in gradient.items()
        if name in step.gradient
    }
    return step.pulled_back(what, differences)
