"""What the optimizers really do is read at every step: what they hold, scale, skip, or share."""

import pytest
import torch
from torch import nn

from inrun import Attributor
from inrun.attributor import BalanceError, StepError
from inrun.updates import AdamUpdate, UnknownOptimizerError, register
from inrun.updates.base import RULES
from tests.support import per_sample
from tests.support.regression import LR, Case, N


def test_a_layer_that_is_unfrozen_between_steps_is_valued_from_then_on():
    case = Case()
    case.model[0].requires_grad_(False)
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    expected = case.truth(case.model[2])
    assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12
    case.model[0].requires_grad_(True)
    expected = case.truth()
    assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12
    case.model[2].requires_grad_(False)
    expected = case.truth(case.model[0])
    assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12


def test_a_group_that_is_added_between_steps_is_valued_from_then_on():
    case = Case()
    optimizer = case.sgd(case.model[2])
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    case.step(attr, optimizer)
    case.model.zero_grad()  # the layer that nobody moved has a gradient of its own
    optimizer.add_param_group({"params": list(case.model[0].parameters())})
    expected = case.truth()
    assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12


def test_parameters_of_another_module_are_refused_and_the_two_ways_out_work():
    case = Case()
    body, head = case.model[:2], case.model[2]
    optimizer = case.sgd()
    with pytest.raises(ValueError, match="2 parameters that are not part of the model"):
        Attributor(body, optimizer, {"val": case.target}, "first_order")
    expected = case.truth(body)
    alone = Attributor(body, optimizer, {"val": case.target}, "first_order", params=".")
    with alone.batch(range(N)):
        case.loss().backward()
    optimizer.step()
    assert per_sample.relative_error(alone.last["val"], expected) < 1e-12
    alone.close()
    optimizer.zero_grad()
    expected = case.truth()
    whole = Attributor(nn.ModuleList([body, head]), optimizer, {"val": case.target}, "first_order")
    assert per_sample.relative_error(case.step(whole, optimizer), expected) < 1e-12


def test_values_are_kept_when_all_optimizers_have_stepped_and_refused_when_one_has_not(tmp_path):
    case = Case()
    first, second = case.sgd(case.model[0]), case.sgd(case.model[2])
    attr = Attributor(
        case.model, [first, second], {"val": case.target}, "first_order", store=tmp_path / "values"
    )
    expected = case.truth()
    assert per_sample.relative_error(case.step(attr, first, second), expected) < 1e-12
    with attr.batch(range(N)):
        case.loss().backward()
    first.step()  # the second one waits
    assert attr.last_step.step == 0
    first.zero_grad()
    second.zero_grad()
    with pytest.raises(StepError, match="1 of the optimizers did not take the step"):
        case.step(attr, first, second)
    values = attr.close()
    assert {row["step"] for row in values.sql("SELECT step FROM terms").to_pylist()} == {0}


def test_an_optimizer_whose_parameters_got_no_gradient_is_not_waited_for():
    case = Case()
    first, second = case.sgd(case.model[0]), case.sgd(case.model[2])
    attr = Attributor(case.model, [first, second], {"val": case.target}, "first_order")
    expected = case.truth(case.model[0])
    with attr.batch(range(N)):
        case.model[2].requires_grad_(False)
        loss = case.loss()
        case.model[2].requires_grad_(True)
        loss.backward()
    first.step()
    assert per_sample.relative_error(attr.last["val"], expected) < 1e-12


@pytest.mark.parametrize("method", ["first_order", "path"])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_fused_optimizer_under_a_loss_scaler_is_valued_as_without_one(method, unscale):
    found, weights = [], []
    for scale in (None, 1024.0):
        case = Case()
        optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-2, fused=True)
        for _ in range(5):
            case.loss().backward()
            optimizer.step()
            optimizer.zero_grad()
        attr = Attributor(case.model, optimizer, {"val": case.target}, method)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=bool(scale))
        with attr.batch(range(N)):
            scaler.scale(case.loss()).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        found.append(attr.last["val"])
        weights.append([p.detach().clone() for p in case.model.parameters()])
        attr.flush()
        row = attr.ledger.last[method, "val"]
        assert row["drop"] == pytest.approx(row["drift"] + row["values"], rel=0.2)
    assert per_sample.relative_error(found[1], found[0]) < 1e-9
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*weights))


def test_a_step_that_the_loss_scaler_skips_in_the_fused_kernel_has_no_values(caplog):
    case = Case()
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-2, fused=True)
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in case.model.parameters()]
    with attr.batch(range(N)):
        scaler.scale(case.loss() * 1e308 * 10).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, p) for a, p in zip(before, case.model.parameters()))
    assert attr.last_step is None
    assert attr.step == 0
    assert "loss scaler skips it" in caplog.text
    optimizer.zero_grad()
    with attr.batch(range(N)):
        scaler.scale(case.loss()).backward()
    scaler.step(optimizer)
    assert attr.step == 1


def test_a_closure_is_refused_and_the_advised_form_is_right():
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")

    def closure():
        optimizer.zero_grad()
        with attr.batch(range(N)):
            loss = case.loss()
            loss.backward()
        return loss

    before = [p.detach().clone() for p in case.model.parameters()]
    for call in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
        with pytest.raises(StepError, match="Call the closure yourself"):
            call()
    assert all(torch.equal(a, p) for a, p in zip(before, case.model.parameters()))
    expected = case.truth()
    closure()
    optimizer.step()
    assert per_sample.relative_error(attr.last["val"], expected) < 1e-12


class Decayed(torch.optim.AdamW):
    """Has a step of its own, which halves every weight first."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.5)
        return super().step(closure)


class Named(torch.optim.AdamW):
    """Adds nothing to the step."""


def test_a_subclass_with_a_step_of_its_own_inherits_no_rule_unless_it_is_told_to():
    case = Case()
    with pytest.raises(UnknownOptimizerError, match=r"Decayed has a step of its own.*register"):
        Attributor(
            case.model, Decayed(case.model.parameters()), {"val": case.target}, "first_order"
        )
    optimizer = Named(case.model.parameters(), lr=1e-2)
    case.step(Attributor(case.model, optimizer, {"val": case.target}, "first_order"), optimizer)
    with RULES.restored():
        register(Decayed)(AdamUpdate)
        Attributor(
            case.model, Decayed(case.model.parameters()), {"val": case.target}, "first_order"
        ).close()


class Wrapper(torch.optim.Optimizer):
    """A wrapper as accelerate's: it is no optimizer of its own and has no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def test_the_optimizer_inside_a_wrapper_is_found():
    case = Case()
    optimizer = Wrapper(case.sgd())
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    expected = case.truth()
    assert per_sample.relative_error(case.step(attr, optimizer), expected) < 1e-12
    with pytest.raises(ValueError, match="give the optimizer inside the wrapper"):
        Attributor(case.model, Wrapper(None), {"val": case.target}, "first_order")


def test_an_optimizer_that_steps_in_the_backward_is_refused_by_name():
    case = Case()
    each = {p: torch.optim.SGD([p], lr=LR) for p in case.model.parameters()}

    def step_now(p):
        each[p].step()
        each[p].zero_grad()

    attr = Attributor(case.model, list(each.values()), {"val": case.target}, "first_order")
    handles = [p.register_post_accumulate_grad_hook(step_now) for p in each]
    with pytest.raises(StepError, match=r"post-accumulate-grad hooks"), attr.batch(range(N)):
        case.loss().backward()
    attr.close()
    for handle in handles:
        handle.remove()


def test_a_gradient_that_is_taken_away_or_not_asked_for_is_refused():
    case = Case()
    optimizer = case.sgd()
    attr = Attributor(case.model, optimizer, {"val": case.target}, "first_order")
    with attr.batch(range(N)):
        case.loss().backward(inputs=[case.model[2].weight])
    with pytest.raises(BalanceError, match=r"2\.bias: the samples have a part"):
        optimizer.step()
    optimizer.zero_grad()
    with attr.batch(range(N)):
        case.loss().backward()
    case.model[0].zero_grad()
    with pytest.raises(BalanceError, match=r"0\.bias, 0\.weight: the samples have a part"):
        optimizer.step()


def test_lbfgs_is_refused_with_the_reason():
    case = Case()
    optimizer = torch.optim.LBFGS(case.model.parameters())
    with pytest.raises(ValueError, match="several times within a step"):
        Attributor(case.model, optimizer, {"val": case.target}, "first_order")
