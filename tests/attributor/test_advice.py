"""What a refusal advises is done, and the values are those of the loop."""

import pytest
import torch
from torch import nn

from inrun import Attributor
from inrun.ghost import ForwardRouteError, UncoveredUseError
from tests.attributor.test_whole_route import valued
from tests.support import per_sample
from tests.support.any_layer import EXAMPLES, LR, Example, N, regression

#: what is refused -> (by which error, in which words, on which route)
REFUSED = {
    "a sum over samples": (UncoveredUseError, r"out\.weight.*vdot.*one number", "tap"),
    "no forward derivative": (ForwardRouteError, "no forward-mode derivative", "forward"),
    "a gradient penalty": (UncoveredUseError, "create_graph", "tap"),
    "nested tensors": (Exception, "nested|j1", "tap"),
    "a loss of one's own": (ForwardRouteError, "loss function", "forward"),
}


def own_loss() -> Example:
    """A loss that is none of torch.nn.functional's."""
    example = regression(nn.Linear(6, 2), 6)
    model, x = example.model, torch.randn(N, 6).double()
    share = lambda i: model(x[i]).abs().sum().sqrt() / N  # noqa: E731
    return Example(model, share, lambda: sum(map(share, range(N))), example.target)


def sum_over_samples() -> Example:
    """A loss that is one product of all samples' outputs with a weight."""
    model, x = nn.ModuleDict({"out": nn.Linear(6, 1, bias=False)}).double(), torch.randn(N, 6)
    x = x.double()
    share = lambda i: torch.vdot(x[i].tanh(), model["out"].weight[0]) / N  # noqa: E731
    many = lambda: torch.vdot(x.tanh().flatten(), model["out"].weight[0].repeat(N)) / N  # noqa: E731
    return Example(model, share, many, lambda: model["out"](x).square().mean())


OWN = {
    "a sum over samples": sum_over_samples,
    "a loss of one's own": own_loss,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_way_out_that_a_refusal_names_gives_the_values_of_the_loop(kind):
    torch.manual_seed(0)
    example = (EXAMPLES | OWN)[kind]()
    error, words, route = REFUSED[kind]
    optimizer = torch.optim.SGD(example.model.parameters(), lr=LR)
    attr = Attributor(example.model, optimizer, {"val": example.target}, route=route)

    def step():
        with attr.batch(range(N), forward=example.together):
            example.together().backward()
        optimizer.step()

    before = [p.detach().clone() for p in example.model.parameters()]
    with pytest.raises(error, match=words) as refused:
        step()
    attr.close()
    assert "route='whole'" in str(refused.value)
    assert all(torch.equal(a, b) for a, b in zip(before, example.model.parameters()))
    example.model.zero_grad()
    values = valued(example, "whole").last["val"]
    example.model.load_state_dict(dict(zip(example.model.state_dict(), before)))
    assert per_sample.relative_error(values, example.truth()) < 1e-12
