"""Values on this project's own models, against a float64 loop of per-sample gradients."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import inrun
from inrun import Attributor
from inrun.methods import FirstOrder, SecondOrder
from tests.support import per_sample
from tests.support.small_models import loss_of, rows, small
from tests.support.step_case import regression_case


@pytest.mark.parametrize("route", ["tap", "fused"])
@pytest.mark.parametrize("validation", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_first_order_equals_a_loop_of_per_sample_gradients_parameter_by_parameter(
    family, validation, route
):
    model, train, val = small(family), rows(5, 1), rows(validation, 2)
    scale, lr = 1 / train[:, 1:].numel(), 0.3
    truth, by_name = per_sample.first_order(
        model,
        [lambda i=i: loss_of(model, train[i : i + 1], scale) for i in range(5)],
        lambda: loss_of(model, val, 0.1),
        lr,
    )
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        "first_order",
        route=route,
    )
    with attr.batch(range(5)):
        loss_of(model, train, scale).backward()
    attr.optimizers[0].step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-10
    parts = attr.last_step.per_parameter["first_order", "val"]
    assert set(parts) == {name for name, _ in model.named_parameters()}
    for name, part in parts.items():
        assert per_sample.relative_error(part, by_name[name]) < 1e-10, name


@pytest.mark.parametrize(
    ("cut", "route"),
    [([5], "tap"), ([5], "fused"), ([2, 3], "fused"), ([1, 1, 1, 1, 1], "tap"), ([4, 1], "fused")],
)
@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_second_order_uses_the_whole_steps_gradient_however_the_batch_is_cut(family, cut, route):
    model, train, val = small(family), rows(5, 1), rows(2, 2)
    scale, lr, norm = 1 / train[:, 1:].numel(), 0.3, 0.4
    plain = small(family, fused_head=False)  # the fused head is differentiable once
    plain.load_state_dict(model.state_dict())
    full = per_sample.gradients(model, loss_of(model, train, scale))
    clip = min(1.0, norm / (float(sum(g.norm() ** 2 for g in full.values()) ** 0.5) + 1e-6))
    with sdpa_kernel(SDPBackend.MATH):
        truth = per_sample.second_order(
            plain,
            [lambda i=i: loss_of(plain, train[i : i + 1], scale) for i in range(5)],
            lambda: loss_of(plain, val, 0.1),
            lr,
            clip,
        )
    attr = Attributor(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        {"val": lambda: loss_of(model, val, 0.1)},
        "second_order",
        route=route,
    )
    for ids in torch.arange(5).split(cut):
        with attr.batch(ids):
            loss_of(model, train[ids], scale).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    attr.optimizers[0].step()
    assert clip < 0.9
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-9


@pytest.mark.parametrize("credit", ["immediate", "impulse"])
@pytest.mark.parametrize("state", ["previous", "current"])
def test_first_order_under_adamw_equals_its_formula(state, credit):
    """previous: eta (1-b1)/(1-b1^t) / (sqrt(vhat_{t-1}) + eps); current: (u(G) - u(0)) / G, both
    times the target's gradient at w - u(0); impulse divides by (1 - b1).
    """
    model, train, val = small("gpt2"), rows(4, 1), rows(2, 2)
    lr, b1, b2, eps, wd = 1e-3, 0.9, 0.95, 1e-8, 0.1
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd
    )
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: loss_of(model, val, 0.1)},
        FirstOrder(largest_excess=math.inf, credit=credit)
        if state == "previous"
        else FirstOrder(state=state, credit=credit),
    )
    m = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    v = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for t in range(1, 7):
        at = copy.deepcopy(model)
        with torch.no_grad():  # where momentum and decay take the weights
            for name, p in at.named_parameters():
                idle = b1 * m[name] / ((b2 * v[name] / (1 - b2**t)).sqrt() + eps)
                p.sub_(lr / (1 - b1**t) * idle + lr * wd * p)
        V = per_sample.gradients(at, loss_of(at, val, 0.1))
        g = [per_sample.gradients(model, loss_of(model, train[i : i + 1], 0.02)) for i in range(4)]
        for name in V:
            G = sum(x[name] for x in g)
            after = b2 * v[name] + (1 - b2) * G * G
            if state == "previous":
                slope = (
                    torch.zeros_like(G)
                    if t == 1
                    else lr
                    * (1 - b1)
                    / (1 - b1**t)
                    / ((v[name] / (1 - b2 ** (t - 1))).sqrt() + eps)
                )
                slope = torch.where(v[name] == 0, 0, slope)
            else:
                moved = (b1 * m[name] + (1 - b1) * G) / ((after / (1 - b2**t)).sqrt() + eps)
                idle = b1 * m[name] / ((b2 * v[name] / (1 - b2**t)).sqrt() + eps)
                slope = torch.where(G == 0, 0, lr / (1 - b1**t) * (moved - idle) / G)
            V[name] = slope * V[name] / (1 - b1 if credit == "impulse" else 1)
            m[name], v[name] = b1 * m[name] + (1 - b1) * G, after
        truth = torch.tensor([per_sample.dot(x, V) for x in g], dtype=torch.float64)
        with attr.batch(range(4)):
            loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
        # the first step is without state, the next two have a young one: no slope, or one averaged
        # over coalitions
        if t > (1 if state == "previous" else 3):
            assert per_sample.relative_error(attr.last["val"], truth) < 1e-8
    assert attr.last_step.stateless > 0  # rows of tokens that no sample holds


def test_values_add_over_targets_and_methods_share_a_run():
    model, train = small("gpt2"), rows(4, 1)
    a, b = rows(2, 2), rows(3, 3)
    targets = {
        "a": lambda: loss_of(model, a, 1),
        "b": lambda: loss_of(model, b, 1),
        "both": lambda: loss_of(model, a, 1) + loss_of(model, b, 1),
    }
    methods = [
        "first_order",
        "second_order",
        inrun.Path(nodes=2),
        FirstOrder(update="sgd", name="sgd"),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attr = Attributor(model, optimizer, targets, methods)
    for _ in range(3):
        with attr.batch(range(4)):
            loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
    for method in ("first_order", "second_order", "path", "sgd"):
        values = attr.last_step.values
        assert (
            per_sample.relative_error(
                values[method, "a"] + values[method, "b"], values[method, "both"]
            )
            < 1e-9
        ), method


def test_many_targets_are_valued_as_each_alone_where_elements_have_no_state():
    """Slopes are the same for all targets and made once: at the very first step, for different
    segments and methods, nothing may be mixed up.
    """
    case = regression_case(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), warm_steps=0)
    methods = [
        inrun.Path(nodes=2),
        inrun.Path(nodes=3, name="path_3"),
        SecondOrder(),
        SecondOrder(update="sgd", name="sgd"),
    ]
    x, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 3, dtype=torch.float64)

    def values(chosen):
        model, optimizer = case.copies()
        targets = {str(k): lambda k=k: nn.functional.mse_loss(model(x[k]), y[k]) for k in chosen}
        with Attributor(model, optimizer, targets, methods) as attributor:
            case.step(model, optimizer, attributor)
        return attributor.last_step.values

    together = values([0, 1, 2])
    for k in range(3):
        for (method, target), alone in values([k]).items():
            assert torch.allclose(together[method, target], alone, rtol=1e-12, atol=0), (
                method,
                target,
            )


def test_a_target_that_also_uses_the_token_table_as_a_whole_has_its_look_ups_added():
    """The gradient of a plain sum is one number expanded over the table: rows cannot be added to it
    in place.
    """
    found = {}
    for route in ("tap", "fused"):
        torch.manual_seed(0)
        model, val = small("gpt2"), rows(2, 9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def target(model=model, val=val):
            return model.features(val[:, :-1]).square().mean() + model.wte.weight.sum()

        attr = Attributor(model, optimizer, {"val": target}, "first_order", route=route)
        with attr.batch(range(3)):
            loss_of(model, rows(3, 1), 0.01).backward()
        optimizer.step()
        found[route] = attr.last["val"]
        attr.close()
    assert per_sample.relative_error(found["fused"], found["tap"]) < 1e-10
