"""Values against the truth: exact Shapley values of the real step, by enumeration of all coalitions
in float64.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import inrun
from inrun.attributor import Attributor
from inrun.evaluate import pearson, relative_rmse
from inrun.ghost import Tape
from inrun.shapley import exact, interactions
from inrun.updates import AdamUpdate, Lion, LionUpdate
from tests.support.step_case import StepCase, gpt2_case, regression_case
from tests.support.truth_cases import AFFINE, CURRENT, EXACT, PATH3, PREVIOUS, SGD_FORMULA, truth_of

# -- where the methods are exact


@pytest.mark.parametrize("optimizer", AFFINE)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_with_a_quadratic_utility_second_order_is_path_is_enumeration(optimizer, clip):
    case = regression_case(AFFINE[optimizer], warm_steps=3)
    case.clip = clip
    truth = truth_of(case)
    values = case.values("second_order", "path", PATH3, "first_order")
    for name in ("second_order", "path", "path3"):
        np.testing.assert_allclose(values[name], truth, **EXACT)
    assert relative_rmse(values["first_order"], truth) > 1e-3, (
        "the utility is too flat to tell the methods apart"
    )


def test_pairwise_interactions_are_the_shapley_interaction_index_of_a_quadratic_utility():
    case = regression_case(AFFINE["momentum and decay"], warm_steps=2)
    case.clip = 0.5
    game = case.game()
    expected = interactions(game.utility, game.n)
    model, optimizer = case.copies()
    with Attributor(model, optimizer, {"val": lambda: case.target(model)}, "path") as attributor:
        optimizer.zero_grad()
        with attributor.batch(np.arange(game.n)):
            case.sample_losses(model).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        found = attributor.interactions().numpy()
        optimizer.step()
    pairs = ~np.eye(game.n, dtype=bool)
    np.testing.assert_allclose(found[pairs], expected[pairs], **EXACT)
    np.testing.assert_allclose(found, found.T, **EXACT)


def test_interactions_of_a_language_model_are_its_hessian_between_per_sample_gradients():
    lr = 0.05
    case = gpt2_case(lambda groups: torch.optim.SGD(groups, lr=lr), warm_steps=2, n=4)
    model, optimizer = case.copies()
    with Attributor(
        model, optimizer, {"val": lambda: case.target(model)}, "second_order"
    ) as attributor:
        with attributor.batch(np.arange(4)):
            case.sample_losses(model).sum().backward()
        found = attributor.interactions().numpy()
        optimizer.step()
    model, _ = case.copies()
    weights = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        rows = [
            torch.autograd.grad(loss, weights, retain_graph=True)
            for loss in case.sample_losses(model)
        ]
        first = torch.autograd.grad(case.target(model), weights, create_graph=True)
        hvps = [torch.autograd.grad(first, weights, row, retain_graph=True) for row in rows]
    dot = lambda a, b: float(sum((x * y).sum() for x, y in zip(a, b)))  # noqa: E731
    expected = np.array([[-(lr**2) * dot(row, hvp) for row in rows] for hvp in hvps])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


# -- how fast the error vanishes


def small_network_case(lr: float) -> StepCase:
    """A tanh network on two classes: smooth, far from quadratic."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.7 * normal(*p.shape))
    x, val_x = normal(6, 4), normal(5, 4)
    y, val_y = (x.sum(1) > 0).long(), (val_x.sum(1) > 0).long()
    losses = lambda m: F.cross_entropy(m(x), y, reduction="none") / 6  # noqa: E731
    return StepCase(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        losses,
        lambda m: F.cross_entropy(m(val_x), val_y),
    )


@pytest.fixture(scope="module")
def errors_by_lr():
    torch.manual_seed(0)
    rates, errors = (0.01, 0.02, 0.04, 0.08), {}
    for lr in rates:
        case = small_network_case(lr)
        truth = truth_of(case)
        values = case.values(
            "first_order", "second_order", "path", inrun.Path(nodes=4, name="path4")
        )
        for name, found in values.items():
            errors.setdefault(name, []).append(
                np.linalg.norm(found - truth) / np.linalg.norm(truth)
            )
    return np.log(rates), {name: np.log(found) for name, found in errors.items()}


@pytest.mark.parametrize(
    ("method", "order"), [("first_order", 1), ("second_order", 2), ("path", 2)]
)
def test_the_relative_error_vanishes_with_the_power_of_the_learning_rate_that_the_method_promises(
    errors_by_lr, method, order
):
    rates, errors = errors_by_lr
    slope = np.polyfit(rates, errors[method], 1)[0]
    # the next power's share at the largest rate, a tenth, bends the slope by about as much
    assert slope == pytest.approx(order, abs=0.15)


def test_path_is_closer_than_second_order_and_that_than_first(errors_by_lr):
    _, errors = errors_by_lr
    assert (errors["path"] < errors["second_order"]).all()
    assert (errors["second_order"] < errors["first_order"]).all()


# -- the real AdamW step


def adamw_case(warm_steps: int, n: int = 8, seed: int = 0) -> StepCase:
    make = lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))  # noqa: E731
    return gpt2_case(make, warm_steps, n=n, clip=0.5, seed=seed)


@pytest.fixture(scope="module")
def warm_adamw():
    case = adamw_case(warm_steps=40, n=9)
    game = case.game()
    assert game.factor < 1, "the step should be clipped"
    return exact(game.utility, game.n), case.values(
        "path", PATH3, "second_order", SGD_FORMULA, PREVIOUS, CURRENT
    )


def test_under_adamw_with_warm_moments_decay_and_clipping_path_is_the_truth(warm_adamw):
    truth, values = warm_adamw
    assert abs(values["path3"].sum() / truth.sum() - 1) < 3e-3
    assert pearson(values["path3"], truth) > 0.9999
    assert relative_rmse(values["path3"], truth) < 0.03
    assert pearson(values["path"], truth) > 0.9999
    assert abs(values["path"].sum() / truth.sum() - 1) < 0.03


def test_under_adamw_the_sgd_formula_is_far_worse_and_the_optimizers_own_slope_lies_between(
    warm_adamw,
):
    truth, values = warm_adamw
    error = {name: relative_rmse(found, truth) for name, found in values.items()}
    assert error["sgd_formula"] > 0.8
    assert error["path3"] < error["current"] < error["previous"] < error["sgd_formula"]
    assert pearson(values["previous"], truth) > 0.98
    assert pearson(values["current"], truth) > 0.98
    assert pearson(values["sgd_formula"], truth) < pearson(values["previous"], truth)


@pytest.mark.parametrize("seed", [0, 1])
def test_at_the_very_first_adamw_step_path_averages_the_slope_over_coalitions(seed):
    case = adamw_case(warm_steps=0, seed=seed)
    truth, result = truth_of(case), case.result("path", "first_order", PREVIOUS)
    assert result.stateless == 1.0
    assert pearson(result.values["path", "val"].numpy(), truth) > 0.98
    assert torch.equal(result.values["first_order", "val"], result.values["path", "val"])
    assert not result.values["previous", "val"].any(), "1/eps is not a slope: no state, no value"
    assert result.excess["previous"] == -1.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("warm_steps", [1, 2])
def test_in_the_first_adamw_steps_the_slope_is_averaged_where_the_batch_outweighs_the_state(
    warm_steps, seed, monkeypatch
):
    case = adamw_case(warm_steps=warm_steps, seed=seed)
    truth = truth_of(case)
    averaged = case.values("path")["path"]
    monkeypatch.setattr(AdamUpdate, "warming_up", False)
    secants = case.values("path")["path"]
    assert pearson(averaged, truth) > 0.98
    assert relative_rmse(averaged, truth) < relative_rmse(secants, truth)


def test_later_steps_ask_for_no_squares(monkeypatch):
    asked = []
    squares = Tape.squares
    monkeypatch.setattr(
        Tape, "squares", lambda tape, name: asked.append(name) or squares(tape, name)
    )
    for warm_steps, expected in ((1, True), (2, True), (3, False)):
        asked.clear()
        adamw_regression(warm_steps).values("path")
        assert bool(asked) == expected, warm_steps


def adamw_regression(warm_steps: int) -> StepCase:
    return regression_case(lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.95)), warm_steps)


def test_for_lion_the_slope_averaged_over_coalitions_orders_samples_better_than_the_secant(
    monkeypatch,
):
    cases = [
        gpt2_case(lambda g: Lion(g, lr=3e-4, weight_decay=0.1), warm, clip=1.0, seed=seed)
        for warm in (0, 5, 40)
        for seed in (0, 1)
    ]
    truths = [truth_of(case) for case in cases]
    averaged = [pearson(case.values(PATH3)["path3"], truth) for case, truth in zip(cases, truths)]
    monkeypatch.setattr(LionUpdate, "stateless", lambda self: None)
    secants = [pearson(case.values(PATH3)["path3"], truth) for case, truth in zip(cases, truths)]
    assert min(averaged) > 0.98
    assert all(a > s for a, s in zip(averaged, secants))
    assert min(secants[:2]) < 0.2, "at the first step the secant of a sign has little to say"
