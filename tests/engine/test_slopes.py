"""Slopes of update rules: secants, frozen slopes, products with the Jacobian, impulse."""

import itertools

import mpmath
import pytest
import torch

from inrun.updates import (
    NoFrozenSlopeError,
)
from tests.support.update_cases import (
    ADAM_FLAGS,
    ELEMENTWISE,
    SGD_FLAGS,
    adam,
    lion,
    rule_of,
    sgd,
    warm,
)

# -- slopes


def number(x):
    return mpmath.mpf(float(x.detach() if isinstance(x, torch.Tensor) else x))


def precise_update(optimizer, p, index):
    """(u, size) of one element in 100-digit arithmetic, from the optimizers' papers; size(g): the
    largest term of its slope at g.
    """
    group, state = optimizer.param_groups[0], optimizer.state[p]
    w, lr, decay = number(p[index]), number(group["lr"]), number(group["weight_decay"])
    sign = -1 if group.get("maximize") else 1
    if isinstance(optimizer, torch.optim.SGD):
        mu, dampening = number(group["momentum"]), number(group["dampening"])
        buffer = state.get("momentum_buffer") if mu else None

        def u(g):
            g = sign * g + decay * w
            if not mu:
                return lr * g
            b = g if buffer is None else mu * number(buffer[index]) + (1 - dampening) * g
            return lr * (g + mu * b if group["nesterov"] else b)

        return u, lambda g: 2 * lr
    b1, b2, eps = (number(x) for x in (*group["betas"], group["eps"]))
    t = int(state["step"]) + 1 if state else 1
    m, v = (number(state[key][index]) if state else number(0) for key in ("exp_avg", "exp_avg_sq"))
    top = number(state["max_exp_avg_sq"][index]) if group["amsgrad"] and state else number(0)

    def with_decay(g):
        return sign * g + (0 if group["decoupled_weight_decay"] else decay * w)

    def denominator(g):
        second = b2 * v + (1 - b2) * with_decay(g) ** 2
        second = max(top, second) if group["amsgrad"] else second
        return mpmath.sqrt(second / (1 - b2**t)) + eps

    def u(g):
        step = lr * (b1 * m + (1 - b1) * with_decay(g)) / (1 - b1**t) / denominator(g)
        return step + (lr * decay * w if group["decoupled_weight_decay"] else 0)

    # the slope of numerator over denominator is a difference of two terms, which cancel where the
    # update is a sign
    return u, lambda g: lr * (1 - b1) / (1 - b1**t) / denominator(g)


CLOSED_FORMS = {name: make for name, make in ELEMENTWISE.items() if not name.startswith("lion")}
SIZES = torch.tensor([1.0, -3.0, 1e3, 1e-3, -1e-9, 1e-20, 1e-38, 0.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_secant_is_the_slope_between_two_points_of_the_segment_however_small_the_gradient(
    name, steps, dtype
):
    p, optimizer = warm(CLOSED_FORMS[name], steps, SIZES.shape, dtype)
    g = SIZES.to(dtype)
    if dtype == torch.float32:
        g[SIZES.abs() < 1e-15] = 0  # g^2 is no normal float32 number
    lo, hi = 0.25, 0.875
    secant = rule_of(p, optimizer).secant(g, lo, hi).expand_as(g)
    # Closed form: a dozen roundings. amsgrad: the difference of two updates of size 0.01, divided
    # by g.
    eps = 50 * torch.finfo(dtype).eps
    for i in range(len(g)):
        if float(g[i]) == 0:
            assert isinstance(optimizer, torch.optim.SGD) or float(secant[i]) == 0
            continue
        with mpmath.workdps(100):
            u, size = precise_update(optimizer, p, i)
            expected = float((u(hi * number(g[i])) - u(lo * number(g[i]))) / number(g[i]))
            allowed = eps * float(size(hi * number(g[i])))
        if name.startswith("adam") and optimizer.param_groups[0]["amsgrad"]:
            allowed = eps * 0.02 / abs(float(g[i]))
        assert abs(float(secant[i]) - expected) <= allowed, f"g = {float(g[i])}"


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_secants_telescope_to_the_whole_update(name, steps):
    p, optimizer = warm(ELEMENTWISE[name], steps)
    rule, g = rule_of(p, optimizer), torch.randn_like(p)
    ends = [0.0, 0.1, 0.35, 0.5, 0.9, 1.0]
    parts = sum(rule.secant(g, lo, hi) for lo, hi in itertools.pairwise(ends))
    torch.testing.assert_close(
        (parts * g).expand_as(g), rule(g) - rule.zero(), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(
    "name", [n for n in ELEMENTWISE if not n.startswith("lion") and "amsgrad': True" not in n]
)
def test_the_vector_jacobian_product_of_a_short_segment_is_its_secant(name):
    p, optimizer = warm(ELEMENTWISE[name], 2)
    rule, g = rule_of(p, optimizer), torch.randn_like(p)
    cotangent, h = torch.randn_like(p), 1e-4
    slope = rule.secant(g, 0.5 - h, 0.5 + h) / (2 * h)
    torch.testing.assert_close(
        rule.vjp(0.5 * g, cotangent), slope * cotangent, rtol=1e-5, atol=1e-9
    )  # O(h^2) apart


@pytest.mark.parametrize("flags", ADAM_FLAGS)
def test_adams_frozen_slope_is_its_formula_and_zero_without_state(flags):
    p, optimizer = warm(adam(torch.optim.AdamW, **flags), 3)
    state = optimizer.state[p]
    state["exp_avg_sq"][0] = 0
    v = state["max_exp_avg_sq"] if flags["amsgrad"] else state["exp_avg_sq"]
    slope = 0.01 * (1 - 0.9) / (1 - 0.9**4) / ((v / (1 - 0.95**3)).sqrt() + 1e-6)
    slope = -slope if flags["maximize"] else slope
    slope[0] = 0
    rule = rule_of(p, optimizer)
    torch.testing.assert_close(rule.frozen_slope(), slope, rtol=1e-12, atol=0)
    assert rule.stateless().tolist() == [[True] * 4, [False] * 4, [False] * 4]
    p, optimizer = warm(adam(**flags), 0)
    assert not rule_of(p, optimizer).frozen_slope().any()
    assert rule_of(p, optimizer).stateless().all()


def test_sgds_frozen_slope_is_exact_and_sign_rules_have_none():
    for flags in SGD_FLAGS:
        for steps in (0, 2):
            p, optimizer = warm(sgd(**flags), steps)
            rule, g = rule_of(p, optimizer), torch.randn_like(p)
            torch.testing.assert_close(
                (rule.frozen_slope() * g), rule(g) - rule.zero(), rtol=1e-11, atol=1e-13
            )
    p, optimizer = warm(lion(), 1)
    with pytest.raises(NoFrozenSlopeError, match="LionUpdate has no slope"):
        rule_of(p, optimizer).frozen_slope()


@pytest.mark.parametrize(
    "flags",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.8, "dampening": 0.3},
        {"momentum": 0.5, "maximize": True},
        {"momentum": 0.0},
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_impulse_is_all_that_a_gradient_does_over_the_steps_to_come(flags, steps):
    def weights(extra):
        torch.manual_seed(1)
        p, optimizer = warm(sgd(**flags), steps)
        impulse, seen = rule_of(p, optimizer).impulse, []
        for k in range(501):  # 0.9^500 = 1e-23
            p.grad = torch.ones_like(p) + (extra if k == 0 else 0.0)
            optimizer.step()
            seen.append(p.detach().clone())
        return impulse, seen

    impulse, plain = weights(0.0)
    _, pushed = weights(1.0)
    at_once, in_the_end = pushed[0] - plain[0], pushed[-1] - plain[-1]
    # the difference of two weights of order 100 (500 steps of 0.1 to 1): nine digits are left
    torch.testing.assert_close(in_the_end, impulse * at_once, rtol=1e-9, atol=1e-9)


def test_adams_impulse_is_that_of_its_first_moment_while_the_second_stands_still():
    b2, far = 1 - 1e-12, 1e15  # bias corrections are over, and one gradient does not change v

    def weights(extra):
        p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = torch.optim.AdamW([p], lr=0.01, betas=(0.9, b2), weight_decay=0.0)
        optimizer.state[p] = {
            "step": torch.tensor(far, dtype=torch.float64),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.ones_like(p),
        }
        impulse, seen = rule_of(p, optimizer).impulse, []
        for k in range(400):
            p.grad = torch.full_like(p, extra if k == 0 else 0.0)
            optimizer.step()
            seen.append(p.detach().clone())
        return impulse, seen

    impulse, pushed = weights(1.0)
    torch.testing.assert_close(pushed[-1], impulse * pushed[0], rtol=1e-8, atol=0)
