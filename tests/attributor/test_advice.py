"""What a refusal advises is done, and the values are those of the loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor
from inrun.attributor import BalanceError, UnseenParameterError
from inrun.ghost import ForwardRouteError, UncoveredUseError
from tests.attributor.test_whole_route import valued
from tests.support import per_sample
from tests.support.any_layer import EXAMPLES, LR, Example, N, Times, regression


class SeenAndNot(nn.Module):
    """A weight in a layer that is seen, and in an autograd function of one's own."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.tanh(Times.apply(x, self.w) + F.linear(x, self.w)))


#: what is refused -> (by which error, in which words, on which route)
REFUSED = {
    "LSTM": (UncoveredUseError, r"lstm.*returns several", "tap"),
    "no forward derivative": (ForwardRouteError, "no forward-mode derivative", "forward"),
    "an autograd function of one's own": (UnseenParameterError, r"of your own \(Times,", "tap"),
    "a gradient penalty": (UncoveredUseError, "create_graph", "tap"),
    "nested tensors": (Exception, "nested|j1", "tap"),
    "seen in one place": (BalanceError, r"parameter w: .*of your own \(Times,", "tap"),
    "a loss of one's own": (ForwardRouteError, "loss function", "forward"),
}


def own_loss() -> Example:
    """A loss that is none of torch.nn.functional's."""
    example = regression(nn.Linear(6, 2), 6)
    model, x = example.model, torch.randn(N, 6).double()
    share = lambda i: model(x[i]).abs().sum().sqrt() / N  # noqa: E731
    return Example(model, share, lambda: sum(map(share, range(N))), example.target)


OWN = {
    "seen in one place": lambda: regression(SeenAndNot(), 6),
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
