"""Layers that are frozen and unfrozen while a training goes on."""

import pytest
import torch

from inrun import Attributor
from inrun.attributor import StepError
from tests.support import per_sample
from tests.support.regression import LR, Case, N


@pytest.mark.parametrize("gone", [True, False])
def test_a_layer_that_is_frozen_while_its_gradient_stays_is_refused_before_it_moves(gone):
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    with attr.batch(range(N)):
        case.loss().backward()
    optimizer.step()  # the gradient stays
    case.model[0].requires_grad_(False)
    case.model[2].zero_grad()
    if gone:
        case.model[0].zero_grad()
    expected = case.truth(case.model[2])
    before = [p.detach().clone() for p in case.model.parameters()]
    with attr.batch(range(N)):
        case.loss().backward()
    if gone:
        optimizer.step()
        assert per_sample.relative_error(attr.last["val"], expected) < 1e-12
    else:
        with pytest.raises(StepError, match=r"parameter 0\.weight is not valued.*p\.grad = None"):
            optimizer.step()
        assert all(torch.equal(a, p) for a, p in zip(before, case.model.parameters()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_frozen_layer_whose_gradient_is_zero_is_refused_only_if_momentum_moves_it(momentum):
    case = Case()
    optimizer = torch.optim.SGD(case.model.parameters(), lr=LR, momentum=momentum)
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    case.step(attr, optimizer)
    case.model[0].requires_grad_(False)
    for p in case.model[0].parameters():
        p.grad = torch.zeros_like(p)
    if momentum:
        with pytest.raises(StepError, match=r"0\.weight is not valued"):
            case.step(attr, optimizer)
    else:
        expected = case.truth(case.model[2])
        assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12


def test_a_layer_that_is_unfrozen_between_two_micro_batches_is_refused():
    case = Case()
    case.model[0].requires_grad_(False)
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    with attr.batch(range(N)):
        case.loss().backward()
    case.model[0].requires_grad_(True)
    with pytest.raises(StepError, match=r"0\.weight requires a gradient since"):
        case.step(attr, optimizer)
    case.loss().backward()
    with pytest.raises(StepError, match=r"0\.weight is not valued"):  # nor without a block
        optimizer.step()


def test_a_layer_that_is_frozen_between_two_micro_batches_keeps_the_part_of_the_first():
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    whole, rest = case.truth(), case.truth(case.model[2])
    with attr.batch(range(N)):
        case.loss().backward()
    case.model[0].requires_grad_(False)
    values = case.step(attr, optimizer)
    assert per_sample.relative_error(values, torch.cat([whole, rest])) < 1e-12
