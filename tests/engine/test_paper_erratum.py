"""The second-order formula of the paper's appendix D.2, as printed and with the factor it lacks.

Wang et al. 2025 (arXiv 2406.11011), D.2, take ``g_z^T H G`` of a chain of linear layers from
quantities that one training pass leaves: for layer j, inputs a_j and output gradients b_j of the
validation sample (v), of a batch sample (s) and of the sample that is valued (z), with

    F = <g_v, g_s> = sum_j c_j d_j,        c_j = a_j^v . a_j^s,        d_j = b_j^v . b_j^s

    g_z^T H g_s = sum_i (a_i^z . a_i^v) (b_i^z . dF/ds_i^v)        part 1
                + sum_i (b_i^z . b_i^v) (a_i^z . t_i)              part 2

t_i is the tangent of the validation sample's input of layer i when the weights move along g_s:
``t_1 = 0,  t_{i+1} = phi'(s_i^v) * (W_i t_i + c_i b_i^s)``. The printed recursion injects ``b_i^s``
without the factor c_i. `docs/method.md` speaks of it.

Oracles that share nothing with the formula: double backward, and central differences of the
gradient. The engine does not use the formula (it takes a Hessian-vector product), and is held
against the same oracle.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun import Attributor

SAMPLES, LR = 4, 0.1

# Products of float64 numbers of order one, through three layers.
ROUNDING = 1e-12


@dataclass
class Pass:
    """One sample's way through the network, by layer."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    output_gradients: list[Tensor]
    probes: list[Tensor]


class Chain:
    """Three linear layers with tanh between them, cross-entropy on top, float64."""

    widths = (5, 7, 6, 3)

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weights = [
            (normal(o, i) / i**0.5).requires_grad_()
            for i, o in zip(self.widths[:-1], self.widths[1:])
        ]
        self.x, self.y = normal(SAMPLES, 5), torch.arange(SAMPLES) % 3
        self.val_x, self.val_y = normal(5), torch.tensor(1)

    def run(self, x: Tensor, y: Tensor) -> Pass:
        inputs, outputs, probes = [], [], []
        for k, W in enumerate(self.weights):
            inputs.append(x)
            probes.append(torch.zeros(W.shape[0], dtype=x.dtype, requires_grad=True))
            outputs.append(W @ x + probes[-1])
            x = outputs[-1].tanh() if k < 2 else outputs[-1]
        loss = F.cross_entropy(x[None], y[None])
        gradients = torch.autograd.grad(loss, probes, create_graph=True)
        return Pass(inputs, outputs, list(gradients), probes)

    def gradient(self, x: Tensor, y: Tensor, weights: list[Tensor], create_graph=False):
        for k, W in enumerate(weights):
            x = (W @ x).tanh() if k < 2 else W @ x
        return torch.autograd.grad(
            F.cross_entropy(x[None], y[None]), weights, create_graph=create_graph
        )


def dot(left, right) -> Tensor:
    return sum((a * b).sum() for a, b in zip(left, right))


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.fixture(scope="module")
def expected(chain) -> np.ndarray:
    """``g_z^T H g_s`` [z, s] by double backward."""
    rows = [chain.gradient(x, y, chain.weights) for x, y in zip(chain.x, chain.y)]
    first = chain.gradient(chain.val_x, chain.val_y, chain.weights, create_graph=True)
    hvps = [torch.autograd.grad(first, chain.weights, row, retain_graph=True) for row in rows]
    return np.array([[float(dot(z, hvp)) for hvp in hvps] for z in rows])


def by_the_formula(chain: Chain, factor: bool, second_part: bool = True) -> np.ndarray:
    """``g_z^T H g_s`` [z, s] by D.2; factor: with c_j on what layer j injects, or as printed."""
    val = chain.run(chain.val_x, chain.val_y)
    samples = [chain.run(x, y) for x, y in zip(chain.x, chain.y)]
    found = np.zeros((SAMPLES, SAMPLES))
    for s, other in enumerate(samples):
        a_s = [a.detach() for a in other.inputs]
        b_s = [b.detach() for b in other.output_gradients]
        c = [a @ a_other for a, a_other in zip(val.inputs, a_s)]
        d = [b @ b_other for b, b_other in zip(val.output_gradients, b_s)]
        slopes = torch.autograd.grad(dot(c, d), val.probes, retain_graph=True)
        tangents = [torch.zeros_like(val.inputs[0])]
        for W, out, c_j, b_j in zip(chain.weights[:2], val.outputs, c, b_s):
            injected = c_j * b_j if factor else b_j
            tangents.append((1 - out.tanh() ** 2) * (W @ tangents[-1] + injected))
        for z, sample in enumerate(samples):
            for i in range(3):
                a_z, b_z = sample.inputs[i], sample.output_gradients[i]
                part = (a_z @ val.inputs[i]) * (b_z @ slopes[i])
                if second_part:
                    part = part + (b_z @ val.output_gradients[i]) * (a_z @ tangents[i])
                found[z, s] += float(part.detach())
    return found


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def test_the_oracle_is_the_difference_of_gradients_at_moved_weights(chain, expected):
    rows = [chain.gradient(x, y, chain.weights) for x, y in zip(chain.x, chain.y)]
    step, found = 1e-5, np.zeros_like(expected)
    for s, row in enumerate(rows):
        ends = [
            [(W + sign * step * g).detach().requires_grad_() for W, g in zip(chain.weights, row)]
            for sign in (1, -1)
        ]
        up, down = (chain.gradient(chain.val_x, chain.val_y, end) for end in ends)
        hvp = [(a - b) / (2 * step) for a, b in zip(up, down)]
        found[:, s] = [float(dot(z, hvp)) for z in rows]
    # truncation step^2, rounding 1e-16 / step
    assert relative_error(found, expected) < 1e-8


def test_with_the_factor_the_formula_is_the_second_derivative(chain, expected):
    assert relative_error(by_the_formula(chain, factor=True), expected) < ROUNDING


def test_as_printed_the_formula_is_another_quantity(chain, expected):
    printed = relative_error(by_the_formula(chain, factor=False), expected)
    first_part = relative_error(by_the_formula(chain, factor=True, second_part=False), expected)
    assert printed > 0.1
    assert first_part > 0.1, "part 2 is too small here to tell"


def test_the_engines_second_order_is_the_second_derivative(chain, expected):
    model = nn.Sequential(
        nn.Linear(5, 7, bias=False),
        nn.Tanh(),
        nn.Linear(7, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 3, bias=False),
    ).double()
    with torch.no_grad():
        for p, W in zip(model.parameters(), chain.weights):
            p.copy_(W)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    target = lambda: F.cross_entropy(model(chain.val_x[None]), chain.val_y[None])  # noqa: E731
    with Attributor(
        model, optimizer, {"val": target}, ["first_order", "second_order"]
    ) as attributor:
        with attributor.batch(np.arange(SAMPLES)):
            F.cross_entropy(model(chain.x), chain.y, reduction="sum").backward()
        optimizer.step()
        values = attributor.last_step.values
    first, second = (values[name, "val"].numpy() for name in ("first_order", "second_order"))
    # value_second - value_first = -lr^2/2 g_z^T H sum_s g_s
    found = (first - second) * 2 / LR**2
    assert relative_error(found, expected.sum(1)) < 1e-10
