"""Path: the Aumann-Shapley value of the step, the gradient of the utility averaged along the way from "nobody" to "everybody".

``V = sum_k [integral over segment k of J(s G)]^T grad L(w - u(s_k G))``, J = du/dG, s_k the node of the segment. With quadratic utility and an affine update
it equals the Shapley value; its values add up to the true drop of the loss along the step as the number of nodes grows. (Aumann and Shapley 1974.)
"""

from torch import Tensor

from inrun.directions.method import Method, method
from inrun.directions.step import Step, gauss
from inrun.directions.target import Target


@method("path")
def path(what: Method, step: Step, target: Target) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for node, lo, hi in segments(what.nodes, what.quadrature):
        gradient = target.gradient(at=lambda node=node: step.moved(what, node), key=(what.name, node))
        for name, g in gradient.items():
            if name in step.gradient:
                part = step.pull_back(what, name, g, lo, hi, at=node)
                total[name] = part if name not in total else total[name].add_(part)
    return total


def segments(nodes: int, quadrature: str) -> list[tuple[float, float, float]]:
    """(node, lower end, upper end) of the segments of [0, 1]: their lengths are the quadrature's weights."""
    if quadrature == "midpoint":
        points, weights = [(k + 0.5) / nodes for k in range(nodes)], [1.0 / nodes] * nodes
    else:
        points, weights = gauss(nodes)
    ends = [0.0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    return list(zip(points, ends[:-1], ends[1:]))
