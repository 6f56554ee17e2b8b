"""Retraining-based baselines against enumeration, closed forms and their definitions."""

import numpy as np
import pytest
import torch

from inrun.baselines import BaselineError, score
from inrun.baselines.data_shapley import DataShapleyOptions, estimate
from inrun.baselines.datamodels import fit
from inrun.baselines.empirical_influence import difference
from inrun.baselines.pool import Pool
from inrun.baselines.subsets import coin_subsets, random_subsets
from inrun.evaluate import auroc
from inrun.shapley import exact
from inrun.shapley.exact import members
from tests.support.retrain_example import digits_run, ridge_run

#: losses are kept in float32: half a unit in the last place of the largest, twice in a difference
FLOAT32 = 2.0**-24


def utilities(run) -> np.ndarray:
    """U of all 2^n subsets of a ridge run in float64, by its definition."""
    table = []
    for index in range(2 ** len(run.x)):
        x, y = run.x.numpy(), run.y.numpy()
        mask = members(index, len(x))
        w = np.linalg.lstsq(
            np.vstack([x[mask], np.eye(x.shape[1])]),
            np.append(y[mask], np.zeros(x.shape[1])),
            rcond=None,
        )[0]
        table.append(-np.mean((run.target_x.numpy() @ w - run.target_y.numpy()) ** 2))
    return np.array(table)


def test_data_shapley_agrees_with_enumeration_within_its_standard_errors():
    run = ridge_run(n=6)
    truth = exact(utilities(run), 6)
    found = estimate(Pool(run), "val", DataShapleyOptions(trainings=2000, tolerance=0))
    # 166 pairs or more: near enough to normal; six values beyond 4 standard errors have a chance of
    # 4e-4
    assert (np.abs(found.values - truth) < 4 * found.standard_errors + 1e-7).all()
    assert found.standard_errors.max() < 0.2 * np.ptp(truth)
    assert len({ids for ids, _ in run.trainings}) <= 2**6


def test_leave_one_out_of_a_ridge_regression_is_the_closed_form():
    run = ridge_run(n=30, d=4, m=20)
    x, y = run.x.numpy(), run.y.numpy()
    inverse = np.linalg.inv(x.T @ x + np.eye(4))
    w = inverse @ x.T @ y
    hat = np.einsum("ni,ij,nj->n", x, inverse, x)
    without = w - (inverse @ x.T * ((y - x @ w) / (1 - hat))).T  # [n, d]: Sherman and Morrison
    errors = lambda w: np.mean((run.target_x.numpy() @ w - run.target_y.numpy()) ** 2)  # noqa: E731
    truth = np.array([errors(v) for v in without]) - errors(w)
    scored = score(run, "val", "leave_one_out", seeds=2)
    largest = float(run.target_losses(run.retrain(run.sample_ids, 0).model(), "val").detach().max())
    np.testing.assert_allclose(scored.values, truth, rtol=0, atol=2 * FLOAT32 * 2 * largest)
    assert scored.cost.trainings == 2 * 31


def test_empirical_influence_is_its_definition_over_all_subsets():
    n = 6
    run = ridge_run(n)
    table = utilities(run)
    half = [k for k in range(2**n) if members(k, n).sum() == n // 2]
    truth = [
        np.mean([table[k] for k in half if members(k, n)[i]])
        - np.mean([table[k] for k in half if not members(k, n)[i]])
        for i in range(n)
    ]
    outcomes = Pool(run).outcomes(np.array([members(k, n) for k in half]), np.zeros(len(half)))
    np.testing.assert_allclose(
        difference(outcomes.members, outcomes.utility("val")), truth, rtol=1e-5
    )


def test_banzhaf_values_over_all_subsets_are_the_enumerated_ones():
    n = 6
    run = ridge_run(n)
    table = utilities(run)
    coalitions = np.arange(2**n)
    truth = [
        np.mean([table[s | 1 << i] - table[s] for s in coalitions if not s >> i & 1])
        for i in range(n)
    ]
    outcomes = Pool(run).outcomes(np.array([members(k, n) for k in coalitions]), np.zeros(2**n))
    np.testing.assert_allclose(
        difference(outcomes.members, outcomes.utility("val")), truth, rtol=1e-5
    )
    # drawn by a coin: the estimate's error is that of a mean over `count` draws
    count = 2000
    sampled = score(run, "val", "data_banzhaf", trainings=count).values
    assert np.abs(sampled - truth).max() < 4 * 2 * table.std() / np.sqrt(count)


@pytest.mark.parametrize("penalty", ["lasso", "ridge"])
def test_datamodels_recover_a_linear_utility(penalty):
    n, count = 30, 400
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    subsets, _ = random_subsets(n, count, 0.5)
    found = fit(subsets, subsets @ truth + 5, penalty)
    # a fixed size fixes the sum of the members, so coefficients are known up to a constant
    found, truth = found - found.mean(), truth - truth.mean()
    assert np.abs(found - truth).max() < 0.05 * truth.std()
    noisy = fit(subsets, subsets @ truth + rng.normal(scale=truth.std(), size=count), penalty)
    # least squares would have the standard error sigma / sqrt(count / 4) = 0.1 of the spread;
    # shrinkage adds at most as much
    assert np.abs(noisy - noisy.mean() - truth).max() < 4 * 0.2 * truth.std()


def test_a_lasso_that_finds_nothing_gives_zeros_and_a_constant_utility_is_refused():
    subsets, _ = random_subsets(20, 60, 0.5)
    assert np.abs(fit(subsets, np.random.default_rng(0).normal(size=60))).max() < 1
    with pytest.raises(BaselineError, match="nothing to regress"):
        fit(subsets, np.ones(60))
    with pytest.raises(BaselineError, match="too few"):
        fit(subsets[:5], np.arange(5.0))
    with pytest.raises(BaselineError, match="choose lasso or ridge"):
        fit(subsets, np.arange(60.0), "elastic")


@pytest.mark.parametrize("utility", ["accuracy", "loss", "margin"])
def test_memorization_is_its_definition(utility):
    run = digits_run(n=12, m=10)
    scored = score(run, "val", "memorization", trainings=20, utility=utility)
    subsets, seeds = random_subsets(12, 20, 0.5)
    outputs = []
    for row, seed in zip(subsets, seeds):
        model = run.retrain(run.sample_ids[row], int(seed)).model()
        p = torch.softmax(model(run.x).double(), 1)
        own = p[torch.arange(12), run.y]
        right = (p.argmax(1) == run.y).double()
        outputs.append(
            {"accuracy": right, "loss": own.log(), "margin": (own / (1 - own)).log()}[utility]
            .detach()
            .numpy()
        )
    outputs = np.array(outputs)
    truth = [
        outputs[subsets[:, i], i].mean() - outputs[~subsets[:, i], i].mean() for i in range(12)
    ]
    np.testing.assert_allclose(scored.values, -np.array(truth), rtol=2e-4, atol=1e-6)
    assert scored.cost.trainings == 20


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("data_shapley", {"trainings": 100, "tolerance": 0.0}),
        ("datamodels", {"trainings": 80}),
        ("datamodels", {"trainings": 80, "penalty": "ridge"}),
        ("empirical_influence", {"trainings": 80, "utility": "margin"}),
        ("memorization", {"trainings": 80}),
        ("data_banzhaf", {"trainings": 80}),
        ("leave_one_out", {}),
    ],
)
def test_flipped_labels_come_last(name, options):
    run = digits_run(n=20, m=60, flipped=4, classes=2)
    values = score(run, "val", name, **options).values
    assert auroc(-values, np.arange(20) < 4) > 0.8


def test_subsets_of_a_longer_list_begin_with_the_shorter_list():
    for sample in (
        lambda k: random_subsets(20, k, 0.7, seed=3),
        lambda k: coin_subsets(20, k, seed=3),
    ):
        (short, seeds), (long, more) = sample(5), sample(9)
        assert (long[:5] == short).all()
        assert (more[:5] == seeds).all()
        assert len(np.unique(long, axis=0)) == 9
    assert (random_subsets(20, 50, 0.7)[0].sum(1) == 14).all()
    assert random_subsets(20, 2000, 0.7)[0].mean(0) == pytest.approx(
        np.full(20, 0.7), abs=4.5 * 0.5 / np.sqrt(2000)
    )
