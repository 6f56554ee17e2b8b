"""Path: the Aumann-Shapley value of the step, the gradient of the utility averaged along the way
from "nobody" to "everybody".

``V = sum_k [integral over segment k of J(s G)]^T grad L(w_k)``, J = du/dG, w_k in the middle
between the weights at the segment's ends, or at its Gauss-Legendre node. With quadratic utility and
an affine update it equals the Shapley value; its values add up to the true drop of the loss along
the step as the number of nodes grows. (Aumann and Shapley 1974.)

How far they are off is known before any sample is looked at, since ``sum_i <g_i, V> = <G, V>``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from inrun.config import one_of, require
from inrun.methods.base import Method, method
from inrun.methods.step import Step, gauss
from inrun.methods.target import Target

#: nodes are not tripled past this
MOST_NODES = 27


@dataclass(frozen=True, kw_only=True)
class Path(Method):
    """The Aumann-Shapley value along the step that the optimizer takes.

    >>> Path(nodes=3, quadrature="gauss").name
    'path'
    """

    kind: str = field(default="path", init=False)
    nodes: int = 1
    "points along the step at which the target's gradient is evaluated"
    quadrature: Literal["midpoint", "gauss"] = "midpoint"
    """where along the step those points lie; midpoint: in the middle between the weights at the
    ends of as many equal parts of G; gauss: at parts of G, Gauss-Legendre, of two nodes or more"""
    tolerance: float | None = None
    """largest share of what the step did to the loss, drift apart, by which the values' sum may
    miss it: where it is missed by more, the nodes are tripled as long as that helps. Costs two
    evaluations of the target's loss at every step; None asks for none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "method path",
            one_of("quadrature", self.quadrature, ("midpoint", "gauss")),
            (self.nodes >= 1, f"nodes={self.nodes}: choose 1 or more"),
            (
                self.tolerance is None or self.tolerance > 0,
                f"tolerance={self.tolerance}: give a positive share, or None",
            ),
            (
                self.quadrature == "midpoint" or self.nodes > 1 or self.tolerance is not None,
                "quadrature='gauss' with one node is the midpoint; say nodes=2 or more, or leave "
                "quadrature out",
            ),
        )

    @property
    def needs_present_target(self) -> str:
        if self.tolerance is None:
            return ""
        return "its tolerance compares with the loss of this step"


@method("path", Path)
def path(what: Path, step: Step, target: Target) -> dict[str, Tensor]:
    nodes, V = what.nodes, along(what, what.nodes, step, target)
    if what.tolerance is None:
        return V
    utility = target.loss(at=step.moved(what, 0.0)) - target.loss(at=step.moved(what, 1.0))
    missed = abs(utility - _sum_of_values(V, step))
    while missed > what.tolerance * abs(utility) and 3 * nodes <= MOST_NODES:
        nodes *= 3
        V, before = along(what, nodes, step, target), missed
        missed = abs(utility - _sum_of_values(V, step))
        # the rounding of the losses: more nodes do not mend it
        if missed > before / 2:
            break
    return V


def _sum_of_values(V: dict[str, Tensor], step: Step) -> float:
    return float(sum((v * step.gradient[name]).sum(dtype=torch.float64) for name, v in V.items()))


def along(
    what: Method,
    nodes: int,
    step: Step,
    target: Target,
    seen: Callable[[dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """V with so many nodes, midpoints or by the method's own quadrature.

    seen: is given each gradient of the target.
    """
    total: dict[str, Tensor] = {}
    quadrature = getattr(what, "quadrature", "midpoint")
    gauss = quadrature == "gauss" and nodes > 1
    for node, lo, hi in segments(nodes, quadrature):
        if gauss:
            at = partial(step.moved, what, node)
        else:
            at = partial(step.between, what, node, lo, hi)
        gradient = target.gradient(at=at, key=(what.name, node))
        if seen:
            seen(gradient)
        for name, part in step.pulled_back(what, gradient, lo, hi, at=node).items():
            total[name] = part if name not in total else total[name].add_(part)
    return total


def segments(nodes: int, quadrature: str) -> list[tuple[float, float, float]]:
    """(node, lower end, upper end) of the segments of [0, 1]: their lengths are the quadrature's
    weights.
    """
    if quadrature == "midpoint":
        points, weights = [(k + 0.5) / nodes for k in range(nodes)], [1.0 / nodes] * nodes
    else:
        points, weights = gauss(nodes)
    ends = [0.0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    return list(zip(points, ends[:-1], ends[1:]))
