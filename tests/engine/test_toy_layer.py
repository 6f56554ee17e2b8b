"""A layer kind added from outside, exact, fused and compiled, is valued as those inside are.

The truth is a loop of per-sample gradients in float64; the routes differ from it by the order of
their sums, some 1e-15 each.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun.attributor import Attributor
from inrun.registry import RegisteredTwiceError
from inrun.rules import Dense, fused, rule
from tests.support import per_sample
from tests.support.toy_layer import SQUARE_GAIN, FusedGain, SquareGain

LR = 0.1


def case():
    model = nn.Sequential(
        nn.Embedding(11, 6), SquareGain(6), nn.LayerNorm(6), SquareGain(6), nn.Linear(6, 4)
    ).double()
    data = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (8, 5), generator=data)
    labels = torch.randint(4, (8, 5), generator=data)

    def loss(at, forward=model):
        return F.cross_entropy(forward(ids[at]).flatten(0, 1), labels[at].flatten())

    return model, loss


@pytest.mark.parametrize("route", ["tap", "fused", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_form_of_a_toy_layer_gives_the_values_of_a_loop(route):
    model, loss = case()
    batch, target = slice(0, 5), slice(5, 8)
    truth, by_name = per_sample.first_order(
        model,
        [lambda i=i: loss(slice(i, i + 1)) / 5 for i in range(5)],
        lambda: loss(target),
        LR,
    )
    assert by_name["1.weight"].norm() > 0.01 * truth.norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    forward = (
        torch.compile(model, backend="aot_eager", fullgraph=True) if route == "compiled" else model
    )
    before = FusedGain.calls
    with Attributor(
        # an audit would run the layer more often, and its calls are counted
        *(model, optimizer, {"val": lambda: loss(target)}, "first_order"),
        route=route,
        audit=False,
    ) as attr:
        with attr.batch(range(5)):
            loss(batch, forward).backward()
        optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12
    assert FusedGain.calls - before == (2 if route == "fused" else 0)


@pytest.mark.parametrize("route", ["tap", "fused"])
def test_a_toy_layer_is_valued_after_the_backward_too(route):
    model, loss = case()
    batch, target = slice(0, 5), slice(5, 8)
    truth = per_sample.second_order(
        model,
        [lambda i=i: loss(slice(i, i + 1)) / 5 for i in range(5)],
        lambda: loss(target),
        LR,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    targets = {"val": lambda: loss(target)}
    with Attributor(model, optimizer, targets, "second_order", route=route) as attr:
        with attr.batch(range(5)):
            loss(batch).backward()
        optimizer.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12


def test_a_second_form_of_the_same_kind_is_refused():
    with pytest.raises(RegisteredTwiceError, match=r"square_gain.*argument 'w'.*toy_layer"):

        @rule(SQUARE_GAIN, argument="w")
        def other(n, b, x, w):
            return Dense(b)

    with pytest.raises(RegisteredTwiceError, match=r"square_gain.*fused form"):

        @fused(SQUARE_GAIN)
        def another(tracker, x, w):
            return None
