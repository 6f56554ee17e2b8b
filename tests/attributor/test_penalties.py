"""Penalties on weights that are added to the loss belong to no sample: values are those without
them, their own part stands beside, and balance and ledger add up with both.

Both sides of every comparison sum the same float64 products in another order: 1e-12.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor
from tests.support import per_sample

LR, N = 0.1, 6
METHODS = ["first_order", "second_order", "path"]


def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y, xv, yv = (torch.randn(k, d).double() for k, d in ((N, 5), (N, 2), (3, 5), (3, 2)))
    loss = lambda i: F.mse_loss(model(x[i]), y[i], reduction="sum") / (2 * N)  # noqa: E731
    return model, loss, lambda: F.mse_loss(model(xv), yv)


def squares(model):
    return 0.05 * sum(p.pow(2).sum() for p in model.parameters())


def absolute(model):
    return 0.05 * model[0].weight.abs().sum() + model[2].bias.norm()


def together(loss, penalty):
    (loss + penalty).backward()


def in_place(loss, penalty):
    loss += penalty
    loss.backward()


def the_other_way(loss, penalty):
    (2 * (penalty - (-loss)) / 2).backward()


def apart(loss, penalty):
    penalty.backward()
    loss.backward()


@pytest.mark.parametrize("penalty", [squares, absolute])
@pytest.mark.parametrize("way", [together, in_place, the_other_way, apart])
def test_values_are_those_without_the_penalty_and_its_part_stands_beside(way, penalty):
    model, loss, target = case()
    losses = [lambda i=i: loss(slice(i, i + 1)) for i in range(N)]
    truth, _ = per_sample.first_order(model, losses, target, LR)
    own, _ = per_sample.first_order(model, [lambda: penalty(model)], target, LR)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attr = Attributor(model, optimizer, {"val": target}, "first_order")
    with attr.batch(range(4)):
        way(loss(slice(0, 4)), penalty(model))
    with attr.batch(range(4, N)):
        loss(slice(4, N)).backward()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12
    found = attr.last_step.penalties["first_order", "val"]
    assert abs(found - float(own)) < 1e-12 * abs(float(own))


@pytest.mark.parametrize("route", ["tap", "fused", "replay"])
def test_a_penalty_is_valued_by_every_method_as_one_more_player(route):
    """As a sample of its own, the same number comes out of the same formulas."""
    found = []
    for alone in (False, True):
        model, loss, target = case()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for p in model.parameters():  # known moments, so that no slope depends on the samples
            state = {"step": torch.tensor(9.0), "exp_avg": 0.1 * torch.ones_like(p)}
            optimizer.state[p] = state | {"exp_avg_sq": 0.2 * torch.ones_like(p)}
        chosen = METHODS if route != "replay" else METHODS[1:]
        attr = Attributor(model, optimizer, {"val": target}, chosen, route=route)

        def whole(model=model, loss=loss, alone=alone):
            return loss(slice(0, N)) + (0.0 if alone else squares(model))

        with attr.batch(range(N), forward=whole):
            whole().backward()
        if alone:  # the penalty as the loss of a sample
            own = lambda model=model: torch.stack([squares(model)]).sum()  # noqa: E731
            other = Attributor(model, optimizer, {"val": target}, chosen, route="whole")
            attr.close()
            optimizer.zero_grad()
            for i in range(N):
                with other.batch([i]):
                    loss(slice(i, i + 1)).backward()
            with other.batch([N]):
                own().backward()
            attr = other
        optimizer.step()
        found.append(attr.last_step)
    for key, values in found[0].values.items():
        last = found[1].values[key]
        assert per_sample.relative_error(values, last[:N]) < 1e-9
        assert abs(found[0].penalties[key] - float(last[N])) < 1e-9 * float(last.abs().max())


def test_the_ledger_adds_up_with_a_penalty():
    model, loss, target = case()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attr = Attributor(model, optimizer, {"val": target}, "path")
    with attr.batch(range(N)):
        (loss(slice(0, N)) + squares(model)).backward()
    optimizer.step()
    attr.flush()
    row = attr.ledger.last["path", "val"]
    part = attr.last_step.penalties["path", "val"]
    assert row["drift"] == part
    assert abs(part) > 1e-5
    # a cubic remainder of the path's midpoint: (lr |G|)^3 times third derivatives of order one
    assert abs(row["residual"]) < 1e-3 * abs(part)
