"""Score-based baselines: KNN-Shapley by enumeration, the representer theorem, forgetting, EL2N and
prototypes by hand.
"""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from inrun.baselines import score
from inrun.baselines.knn_shapley import closed_form
from inrun.baselines.representer import RepresenterOptions, fit
from tests.support.baseline_case import Classifier


@pytest.fixture(scope="module")
def run():
    return Classifier()


def by_id(scored):
    return dict(zip(scored.table["sample_id"].to_pylist(), scored.values))


@pytest.mark.parametrize(("n", "k"), [(6, 2), (5, 1), (6, 6), (4, 5)])
def test_knn_shapley_is_the_enumerated_shapley_value_of_the_classifier(n, k):
    rng = np.random.default_rng(n + k)
    distances, right = rng.random((3, n)), rng.random((3, n)) < 0.5

    def utility(members):
        total = 0.0
        for far, ok in zip(distances, right):
            nearest = sorted(members, key=lambda i: far[i])[:k]
            total += sum(ok[i] for i in nearest) / k
        return total / 3

    expected = np.zeros(n)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        for size in range(n):
            for S in combinations(rest, size):
                expected[i] += (utility([*S, i]) - utility(S)) / (n * comb(n - 1, size))
    assert np.allclose(closed_form(distances, right, k), expected, rtol=0, atol=1e-12)


def test_knn_shapley_uses_features_and_labels_of_the_run(run):
    scored = score(run, "val", "knn_shapley", k=3)
    model = run.model()
    x, t = (
        run.features(model, run.sample_ids).detach().numpy(),
        run.target_features(model, "val").detach().numpy(),
    )
    right = run.y.numpy()[None] == run.target_y.numpy()[:, None]
    nearest = np.argsort(((t[:, None] - x[None]) ** 2).sum(-1), axis=1)[:, :3]
    accuracy = np.mean(
        [right[j, nearest[j]].mean() for j in range(6)]
    )  # U of everybody: values sum to it
    assert scored.values.sum() == pytest.approx(accuracy, rel=1e-12)


@pytest.mark.parametrize("classes", [3, 2])
def test_representer_points_add_up_to_the_layer_that_they_explain(classes):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 4)), np.arange(40) % classes
    options = RepresenterOptions(strength=0.01, tolerance=1e-10)
    alpha, W = fit(x, labels, classes, options)
    assert np.allclose(alpha.T @ x, W, rtol=0, atol=1e-6)
    p = np.exp(x @ W.T) / np.exp(x @ W.T).sum(1, keepdims=True)
    slope = (
        p - np.eye(classes)[labels]
    ).T @ x / 40 + 2 * 0.01 * W  # of mean cross-entropy + lambda |W|^2
    assert np.abs(slope).max() < 1e-7


def test_representer_values_are_contributions_to_the_right_logit(run):
    values = score(run, "val", "representer").values
    model = run.model()
    x, t = (
        np.c_[f.detach().numpy(), np.ones(len(f))]
        for f in (run.features(model, run.sample_ids), run.target_features(model, "val"))
    )
    _, W = fit(x, run.y.numpy(), 3, RepresenterOptions())
    assert values.sum() == pytest.approx((t @ W.T)[range(6), run.target_y].mean(), rel=1e-4)


def test_forgetting_counts_falls_from_right_to_wrong_after_training_began(run):
    # correct at epoch e for sample k: e (k + 1) is no multiple of 3: epochs 1, 2 right and 3 wrong,
    # unless 3 divides k + 1: never right
    values = by_id(score(run, "val", "forgetting"))
    for k, i in enumerate(run.sample_ids):
        assert values[i] == (3 if (k + 1) % 3 == 0 else 1)
    easy = by_id(score(run, "val", "forgetting", prefer="easy"))
    assert all(easy[i] == -v for i, v in values.items())


def test_el2n_is_the_error_at_its_epoch_in_the_order_of_the_run(run):
    assert score(run, "val", "el2n", epoch=2).values == pytest.approx(
        [2 + k / 10 for k in range(14)]
    )
    with pytest.raises(ValueError, match="epoch 9 is not in the run's history, which has 0 to 3"):
        score(run, "val", "el2n", epoch=9)


def test_prototypes_are_cosine_distances_to_the_mean_of_the_own_class(run):
    values = score(run, "val", "prototypes").values
    x = run.features(run.model(), run.sample_ids).detach().numpy()
    for k in range(14):
        centre = x[run.y.numpy() == int(run.y[k])].mean(0)
        assert values[k] == pytest.approx(
            1 - x[k] @ centre / np.linalg.norm(x[k]) / np.linalg.norm(centre), rel=1e-9
        )


def test_in_run_values_come_in_the_order_of_the_run(run):
    assert score(run, "val", "in_run", method="any").values == pytest.approx(run.sample_ids / 2)
