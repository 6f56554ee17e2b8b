"""Update rules against the optimizers of torch, against 50-digit arithmetic, and against
simulation.
"""

import pytest
import torch

from inrun.updates import (
    AdamUpdate,
    LionUpdate,
    PlainSGD,
    SGDUpdate,
    UnknownOptimizerError,
    snapshot,
)
from tests.support.update_cases import ELEMENTWISE, adam, lion, rule_of, sgd, warm


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_rule_makes_the_step_that_the_optimizer_makes(name, steps):
    p, optimizer = warm(ELEMENTWISE[name], steps)
    rule = rule_of(p, optimizer).freeze()
    before, g = p.detach().clone(), torch.randn_like(p)
    change = rule(g)
    p.grad = g.clone()
    optimizer.step()
    torch.testing.assert_close(before - change, p.detach(), rtol=1e-13, atol=1e-14)
    assert torch.equal(rule(g), change), "a frozen rule does not follow the optimizer"
    assert torch.equal(rule.zero(), rule(torch.zeros_like(g)))


def test_lion_is_the_published_algorithm():
    p, optimizer = warm(lion(weight_decay=0.1), 0)
    w, m = p.detach().clone(), torch.zeros_like(p)
    for _ in range(5):  # Chen et al. 2023, algorithm 2
        g = torch.randn_like(w)
        c = 0.9 * m + 0.1 * g
        w = w - 0.01 * (torch.where(c > 0, 1.0, torch.where(c < 0, -1.0, 0.0)) + 0.1 * w)
        m = 0.99 * m + 0.01 * g
        p.grad = g
        optimizer.step()
    torch.testing.assert_close(p.detach(), w, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_makes_the_step_of_torch_up_to_its_bfloat16_rounding(shape, adjust, nesterov):
    p, optimizer = warm(
        lambda ps: torch.optim.Muon(
            ps, lr=0.1, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=adjust
        ),
        2,
        shape,
        torch.float32,
    )
    rule = rule_of(p, optimizer).freeze()
    before, g = p.detach().clone(), torch.randn(shape)
    p.grad = g.clone()
    optimizer.step()
    taken = before - p.detach()
    # the same bfloat16 iteration; the weight itself is float32 of order 1, so the difference of two
    # weights is good to 1e-7
    torch.testing.assert_close(rule(g), taken, rtol=0, atol=5e-7)
    # In float64 the rule differs by what bfloat16 (2^-9 per operation) makes of five iterations of
    # three products each, whose polynomial has slope 3.4 at small singular values: a few percent of
    # a unit singular value.
    exact = rule.map_tensors(torch.Tensor.double)(g.double())
    off = torch.linalg.matrix_norm(exact.float() - taken, 2) / torch.linalg.matrix_norm(taken, 2)
    assert float(off) < 0.1


def test_the_plain_rule_is_lr_times_gradient_whatever_the_optimizer():
    p, optimizer = warm(adam(torch.optim.AdamW), 2)
    rule, g = PlainSGD(p, {}, optimizer.param_groups[0]), torch.randn_like(p)
    assert torch.equal(rule(g), 0.01 * g)
    torch.testing.assert_close(rule.secant(g, 0.25, 0.5) * g, 0.0025 * g, rtol=1e-13, atol=0)
    assert torch.equal(rule.frozen_slope() * g, 0.01 * g)


def test_a_subclass_is_known_and_a_stranger_is_refused_with_the_next_step():
    class Mine(torch.optim.AdamW):
        pass

    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Mine([p])
    assert isinstance(snapshot(optimizer, p, optimizer.param_groups[0]), AdamUpdate)
    assert isinstance(rule_of(*warm(sgd(), 1)), SGDUpdate)
    assert isinstance(rule_of(*warm(lion(), 1)), LionUpdate)
    stranger = torch.optim.Adagrad([p])
    with pytest.raises(UnknownOptimizerError, match=r"register\(Adagrad\)"):
        snapshot(stranger, p, stranger.param_groups[0])
