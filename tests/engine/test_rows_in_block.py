"""Rows that are picked inside the block: whose they are, or a refusal where it may be either."""

import pytest
import torch
import torch.nn.functional as F

from inrun.attributor import Attributor
from inrun.methods import FirstOrder
from inrun.rules.factors import SampleAxisError

N = 6


def setting(rows):
    """A model, its data [rows, 4], their labels, and a target."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model.double()
    data = torch.randn(rows, 4, dtype=torch.float64)
    labels = torch.randint(3, (rows,))
    val = torch.randn(7, 4, dtype=torch.float64)

    def target():
        return model(val).square().mean()

    return model, data, labels, target


def values_of(model, target, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(model, optimizer, {"val": target}, FirstOrder())
    with attr.batch(range(N)):
        loss().backward()
    optimizer.step()
    attr.close()
    return attr.last["val"]


def oracle(model, target, losses):
    """lr <g_i, grad target>, one sample at a time; losses: those of the samples."""
    weights = list(model.parameters())
    ahead = torch.autograd.grad(target(), weights)
    rows = []
    for loss in losses():
        g = torch.autograd.grad(loss / N, weights, retain_graph=True)
        rows.append(0.1 * sum((a * b).sum() for a, b in zip(g, ahead)))
    return torch.stack(rows)


@pytest.mark.parametrize("rows", [20, 8])
def test_a_batch_that_is_picked_inside_is_in_the_order_of_the_index(rows):
    model, data, labels, target = setting(rows)
    at = torch.tensor([5, 0, 3, 7, 2, 6])
    truth = oracle(
        model, target, lambda: F.cross_entropy(model(data[at]), labels[at], reduction="none")
    )
    found = values_of(model, target, lambda: F.cross_entropy(model(data[at]), labels[at]))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("pick", [lambda x, at: x[at], lambda x, at: x.index_select(0, at)])
def test_two_orders_that_could_be_meant_are_refused(pick):
    model, data, labels, target = setting(N)
    at = torch.tensor([5, 0, 3, 4, 2, 1])
    before = [w.detach().clone() for w in model.parameters()]
    with pytest.raises(SampleAxisError, match="Pick the rows before"):
        values_of(model, target, lambda: F.cross_entropy(model(pick(data, at)), labels[at]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    # what the message says is right
    x, y = data[at], labels[at]
    truth = oracle(model, target, lambda: F.cross_entropy(model(x), y, reduction="none"))
    found = values_of(model, target, lambda: F.cross_entropy(model(x), y))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-15)


def test_an_index_that_keeps_the_order_is_nothing_to_ask_about():
    model, data, labels, target = setting(N)
    at = torch.arange(N)
    truth = oracle(model, target, lambda: F.cross_entropy(model(data), labels, reduction="none"))
    found = values_of(model, target, lambda: F.cross_entropy(model(data[at]), labels[at]))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-15)
