"""Backward passes inside the block that are not the training's, and targets that write."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor
from inrun.attributor import UnseenParameterError
from inrun.ghost import UncoveredUseError
from tests.support import per_sample
from tests.support.regression import LR, Case, N


@pytest.mark.parametrize("method", ["first_order", "path"])
@pytest.mark.parametrize("route", ["tap", "fused"])
def test_a_gradient_that_the_loss_asks_for_itself_belongs_to_no_sample(route, method):
    """An adversarial example: the inner backward goes through every layer, and counts for none."""
    case = Case()

    def attacked(x, y):
        at = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.mse_loss(case.model(at), y), at)
        return x + 0.1 * g.sign()

    fixed = attacked(case.x, case.y)
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, method, route=route)
    plain = Case()
    plain.x = fixed
    other = Attributor(plain.model, plain.sgd(), {"val": plain.target}, method, route=route)
    expected = plain.step(other, *other.optimizers)
    with attr.batch(range(N)):
        F.mse_loss(case.model(attacked(case.x, case.y)), case.y).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], expected) < 1e-12


def test_gradients_that_are_put_into_place_by_hand_are_refused_by_name():
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    parameters = list(case.model.parameters())

    def set_by_hand():
        for p, g in zip(parameters, torch.autograd.grad(case.loss(), parameters)):
            p.grad = g

    with pytest.raises(UncoveredUseError, match="set by hand"), attr.batch(range(N)):
        set_by_hand()
    with attr.batch(range(N)):
        gradients = torch.autograd.grad(case.loss(), parameters)
        for p in parameters:
            assert p.grad is None
    for p, g in zip(parameters, gradients):
        p.grad = g
    with pytest.raises(UnseenParameterError, match=r"torch\.autograd\.grad"):
        optimizer.step()


def test_a_loss_that_contains_a_gradient_is_refused_by_name():
    case = Case()
    attr = Attributor(case.model, case.sgd(), {"val": case.target}, "first_order")
    x = case.x.clone().requires_grad_()
    with (
        pytest.raises(Exception, match=r"create_graph=True.*gradient penalty"),
        attr.batch(range(N)),
    ):
        torch.autograd.grad(F.mse_loss(case.model(x), case.y), x, create_graph=True)


def test_a_target_that_writes_to_the_weights_is_refused_by_name():
    table, head = nn.Embedding(9, 5, max_norm=1.0), nn.Linear(5, 2)
    model = nn.ModuleList([table, head]).double()
    x, val_x = torch.randint(0, 4, (N, 3)), torch.randint(5, 9, (3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attr = Attributor(
        model, optimizer, {"val": lambda: head(table(val_x).mean(1)).square().mean()}, "first_order"
    )
    with pytest.raises(Exception, match=r"wrote to 0\.weight.*max_norm"), attr.batch(range(N)):
        head(table(x).mean(1)).square().mean().backward()
