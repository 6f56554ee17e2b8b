"""An evaluation of a target leaves no trace on the model's buffers, whenever the closure begins to
write them.
"""

import pytest
import torch
from torch import nn

from inrun.methods.target import Target


class Counting(nn.Module):
    """A linear model that counts its calls in a buffer, from the call on that it is told to."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.counting = False

    def loss(self):
        if self.counting:
            self.calls += 1
        return (self.scale * self.weight).square().sum()


@pytest.mark.parametrize("begins", [0, 1, 3])
def test_buffer_that_is_written_from_some_evaluation_on_is_as_before_after_each(begins):
    model = Counting()
    target = Target("val", model.loss, {"weight": model.weight}, model)
    for evaluation in range(5):
        model.counting = evaluation >= begins
        model.calls.fill_(10 * evaluation)  # the training writes it too
        target.forget()
        if evaluation % 2:
            target.gradient()
        else:
            target.loss()
        assert model.calls.tolist() == [10 * evaluation] * 2
        assert model.scale.tolist() == [1.0, 2.0, 3.0]


def test_buffer_that_the_training_changes_counts_with_its_present_content():
    model = Counting()
    target = Target("val", model.loss, {"weight": model.weight}, model)
    losses = []
    for factor in (1.0, 2.0, 3.0):
        model.scale.fill_(factor)
        target.forget()
        losses.append(target.loss())
        assert model.scale.tolist() == [factor] * 3
    assert losses == [3.0, 12.0, 27.0]
