"""Values against the truth: exact Shapley values of the real step, by enumeration of all coalitions
in float64.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import inrun
from inrun.attributor import Attributor, Intervals
from inrun.evaluate import pearson, relative_rmse
from inrun.ghost import Tape
from inrun.methods import FirstOrder, Method
from inrun.shapley import exact, interactions
from inrun.updates import AdamUpdate, Lion, LionUpdate, snapshot
from tests.support.step_case import StepCase, gpt2_case, regression_case

PATH3 = inrun.Path(nodes=3, name="path3")
SGD_FORMULA = FirstOrder(update="sgd", name="sgd_formula")
PREVIOUS, CURRENT = (
    FirstOrder(name="previous"),
    FirstOrder(state="current", name="current"),
)


def truth_of(case: StepCase) -> np.ndarray:
    game = case.game()
    return exact(game.utility, game.n)


# -- where the methods are exact

AFFINE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, dampening=0.4),
}

# Rounding of a loss of order 1 in each of 2^7 coalitions, float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


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
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.7 * draw(*p.shape))
    x, val_x = draw(6, 4), draw(5, 4)
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
    truth, result = truth_of(case), case.result("path", PREVIOUS)
    assert result.stateless == 1.0
    assert pearson(result.values["path", "val"].numpy(), truth) > 0.98
    assert not result.values["previous", "val"].any(), "1/eps is not a slope: no state, no value"


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


# -- path against numerical integration, through the rule itself


def matrix_case(make_optimizer) -> StepCase:
    """Two matrices, no biases (Muon takes matrices only), moments warm."""
    generator = torch.Generator().manual_seed(8)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * draw(*p.shape))
    x, val_x = draw(5, 4), draw(4, 4)
    y, val_y = draw(5, 3).sin(), draw(4, 3).sin()
    losses = lambda m: F.mse_loss(m(x), y, reduction="none").mean(1) / 5  # noqa: E731
    case = StepCase(
        model, make_optimizer(model.parameters()), losses, lambda m: F.mse_loss(m(val_x), val_y)
    )
    for _ in range(4):
        noise = draw(5, 3)
        warm = StepCase(
            model,
            case.optimizer,
            lambda m, noise=noise: (m(x) - y - noise).square().mean(1) / 5,
            case.target,
        )
        warm.step(model, case.optimizer)
    return case


@dataclass
class Rules:
    """The step of a case through its update rules: what autograd can integrate, in float64 (torch's
    own Muon steps in bfloat16).
    """

    case: StepCase

    def __post_init__(self):
        self.model, optimizer = self.case.copies()
        self.weights = dict(self.model.named_parameters())
        self.rules = {
            name: snapshot(optimizer, p, optimizer.param_groups[0])
            for name, p in self.weights.items()
        }
        self.gradients = self.case.game().gradients

    def loss_after(self, gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = {
            name: self.weights[name].detach() - self.rules[name](g) for name, g in gradient.items()
        }
        whole = nn.Module()
        whole.forward = lambda *x: torch.func.functional_call(self.model, moved, x)
        return self.case.target(whole)

    def along(self, s: float) -> dict[str, torch.Tensor]:
        return {name: (s * g.sum(0)).requires_grad_() for name, g in self.gradients.items()}

    def utility_of_all(self) -> float:
        return float((self.loss_after(self.along(0.0)) - self.loss_after(self.along(1.0))).detach())

    def integral(self, points: int) -> np.ndarray:
        """``integral over s of <grad L(w - u(s G)), J(s G) g_i>``, Gauss-Legendre, all derivatives
        by autograd.
        """
        total = 0.0
        nodes, weights = np.polynomial.legendre.leggauss(points)
        for node, weight in zip((nodes + 1) / 2, weights / 2):
            at = self.along(float(node))
            slopes = torch.autograd.grad(-self.loss_after(at), list(at.values()))
            parts = [
                (g * slope).flatten(1).sum(1) for g, slope in zip(self.gradients.values(), slopes)
            ]
            total = total + weight * sum(parts).numpy()
        return total


SMOOTH = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True),
    "muon": lambda p: torch.optim.Muon(p, lr=0.05, weight_decay=0.1),
}
ADAPTIVE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", SMOOTH)
def test_path_with_gauss_nodes_is_the_integral_along_the_step(optimizer):
    case = matrix_case(SMOOTH[optimizer])
    expected = Rules(case).integral(80)
    found = case.values(inrun.Path(nodes=40, quadrature="gauss"))["path"]
    # analytic integrands: 40 Gauss nodes leave rounding, 1e-16 times the amplification of Muon's
    # polynomial
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_path_with_secants_converges_to_the_integral_with_the_square_of_the_segments(optimizer):
    case = matrix_case(ADAPTIVE[optimizer])
    expected = Rules(case).integral(200)
    error = {
        nodes: np.linalg.norm(case.values(inrun.Path(nodes=nodes))["path"] - expected)
        / np.linalg.norm(expected)
        for nodes in (4, 32)
    }
    assert error[32] < 1e-4
    # the midpoint rule: 8 times the segments, 64 times the accuracy; half of it, for the next
    # power's share
    assert error[32] < error[4] / 32


KINKED = {"adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.95), amsgrad=True)}


@pytest.mark.parametrize("optimizer", {**SMOOTH, **ADAPTIVE, **KINKED})
def test_path_values_add_up_to_the_utility_of_all_as_nodes_grow(optimizer):
    case = matrix_case({**SMOOTH, **ADAPTIVE, **KINKED}[optimizer])
    found = case.values(inrun.Path(nodes=24))["path"].sum()
    whole = Rules(case).utility_of_all()
    if optimizer != "muon":
        assert case.game().utility(np.ones(5, dtype=bool)) == pytest.approx(whole, rel=1e-10)
    # one midpoint is off by up to 0.15 here (Muon) and 24 of them by 1/24^2 of that
    assert found == pytest.approx(whole, rel=5e-4)


# -- the ledger


def train(case: StepCase, steps: int, method, batches, tmp_path, name: str):
    """(ledger rows as a table, total drop of the target) of a run over the batches."""
    model, optimizer = case.copies()
    first = case.loss(model)
    with Attributor(
        model, optimizer, {"val": lambda: case.target(model)}, method, store=tmp_path / name
    ) as attributor:
        for step in range(steps):
            StepCase(model, optimizer, batches[step], case.target, case.clip).step(
                model, optimizer, attributor
            )
        values = attributor.close()
    rows = values.sql("SELECT * FROM ledger ORDER BY step").to_pylist()
    return rows, first - case.loss(model)


@pytest.fixture
def ten_batches():
    generator = torch.Generator().manual_seed(11)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    rows = [(draw(4, 4), draw(4, 2).sin()) for _ in range(10)]
    batches = [lambda m, x=x, y=y: (m(x) - y).square().mean(1) / 4 for x, y in rows]
    x, y = draw(5, 4), draw(5, 2).sin()
    return model, batches, lambda m: (m(x) - y).square().mean()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_step_the_drop_is_drift_plus_values_plus_residual_and_drops_telescope(
    optimizer, ten_batches, tmp_path
):
    model, batches, target = ten_batches
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    }[optimizer]
    case = StepCase(model, make(model.parameters()), batches[0], target, clip=0.5)
    rows, total = train(case, 10, inrun.Path(nodes=2), batches, tmp_path, "run")
    assert len(rows) == 10
    replay, stepper = case.copies()
    for row, batch in zip(rows, batches):
        game = StepCase(replay, stepper, batch, target, clip=0.5).game()
        assert row["drop"] == pytest.approx(game.drop, abs=1e-13)
        assert row["drift"] == pytest.approx(game.drift, abs=1e-13)
        assert row["drop"] == pytest.approx(
            row["drift"] + row["values"] + row["residual"], abs=1e-15
        )
        StepCase(replay, stepper, batch, target, clip=0.5).step(replay, stepper)
    assert sum(row["drop"] for row in rows) == pytest.approx(total, abs=1e-13)


def test_impulse_credit_moves_drift_to_values_and_leaves_the_residual(ten_batches, tmp_path):
    model, batches, target = ten_batches
    case = StepCase(
        model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), batches[0], target
    )
    now, _ = train(case, 10, inrun.Path(), batches, tmp_path, "immediate")
    later, _ = train(case, 10, inrun.Path(credit="impulse"), batches, tmp_path, "impulse")
    for a, b in zip(now, later):
        assert b["values"] == pytest.approx(10 * a["values"], rel=1e-9)
        assert b["residual"] == pytest.approx(a["residual"], abs=1e-14)
        assert b["drop"] == a["drop"]
        assert b["drift"] + b["values"] == pytest.approx(a["drift"] + a["values"], abs=1e-14)


# -- a tolerance on the sum

ADAMW = {
    lr: (lambda p, lr=lr: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.95))) for lr in (1e-3, 1e-2)
}


@pytest.mark.parametrize(("lr", "nodes"), [(1e-3, 1), (1e-2, 9)])
def test_with_a_tolerance_nodes_are_tripled_until_the_values_add_up_to_what_the_step_did(lr, nodes):
    case = gpt2_case(ADAMW[lr], warm_steps=12)
    game = case.game()
    utility = game.utility(np.ones(game.n, dtype=bool))
    found = case.values(
        inrun.Path(tolerance=0.02, name="asked"),
        inrun.Path(nodes=nodes, name="enough"),
        inrun.Path(nodes=max(nodes // 3, 1), name="fewer"),
    )
    np.testing.assert_array_equal(found["asked"], found["enough"])
    missed = {name: abs(values.sum() - utility) / abs(utility) for name, values in found.items()}
    assert missed["asked"] <= 0.02
    assert nodes == 1 or missed["fewer"] > 0.02


def test_nodes_are_not_tripled_where_that_does_not_help():
    # the first step of Adam averages slopes over coalitions, and these do not add up
    case = gpt2_case(ADAMW[1e-3], warm_steps=0)
    found = case.values(
        inrun.Path(tolerance=1e-4, name="asked"), inrun.Path(nodes=3, name="once more")
    )
    np.testing.assert_array_equal(found["asked"], found["once more"])


def test_a_tolerance_is_for_path_and_for_gradients_of_this_step():
    with pytest.raises(ValueError, match=r"second_order.*unknown key 'tolerance'"):
        Method.from_config({"kind": "second_order", "tolerance": 0.1}, "second_order")
    with pytest.raises(ValueError, match="tolerance=0"):
        inrun.Path(tolerance=0.0)
    case = regression_case(AFFINE["sgd"], warm_steps=1)
    with pytest.raises(ValueError, match="tolerance compares with the loss of this step"):
        case.values(inrun.Path(tolerance=0.1), intervals=Intervals(refresh=2))
