"""Linear datamodelling score, leave-one-out correlation and agreement on numbers worked out by
hand.
"""

import numpy as np
import pytest

from inrun.baselines.subsets import random_subsets
from inrun.evaluate import (
    agreement,
    leave_one_out_correlation,
    linear_datamodelling_interval,
    linear_datamodelling_score,
)

# pairs of 4 samples; sums of the values (1, 2, 4, 8): 3, 5, 9, 6, 10, 12
VALUES = [1.0, 2.0, 4.0, 8.0]
PAIRS = np.array(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=bool
)


def test_the_score_of_a_worked_example():
    # ranks of the sums 1 2 4 3 5 6 against 1 2 3 4 5 6: sum d^2 = 2, 1 - 6 * 2 / (6 * 35) = 33 / 35
    outputs = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert linear_datamodelling_score(VALUES, PAIRS, outputs) == pytest.approx(33 / 35)
    both = np.stack([outputs, -outputs], axis=1)
    per_output = np.stack([VALUES, VALUES], axis=1)
    assert linear_datamodelling_score(per_output, PAIRS, both) == pytest.approx(0)
    assert linear_datamodelling_score(
        np.stack([VALUES, np.negative(VALUES)], 1), PAIRS, both
    ) == pytest.approx(33 / 35)


def test_true_coefficients_score_one_and_noise_lowers_it():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50)
    members, _ = random_subsets(50, 300, 0.5)
    clean = members @ truth
    assert linear_datamodelling_score(truth, members, clean) == pytest.approx(1)
    noisy = linear_datamodelling_interval(
        truth, members, clean + clean.std() * rng.normal(size=300), resamples=200
    )
    # Pearson 1 / sqrt(2); Spearman of a normal pair is 6 / pi asin(r / 2) = 0.69
    assert noisy.low < 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2) < noisy.high


def test_subsets_of_different_sizes_are_refused():
    members = PAIRS.copy()
    members[0, 2] = True
    with pytest.raises(ValueError, match="2 to 3 members"):
        linear_datamodelling_score(VALUES, members, np.arange(6.0))
    with pytest.raises(ValueError, match="expected members bool"):
        linear_datamodelling_score(VALUES, PAIRS.astype(float), np.arange(6.0))
    with pytest.raises(ValueError, match="expected members bool"):
        linear_datamodelling_score(VALUES[:3], PAIRS, np.arange(6.0))
    with pytest.raises(ValueError, match="pass their mean"):
        linear_datamodelling_interval(np.ones((4, 2)), PAIRS, np.ones((6, 2)))


def test_leave_one_out_correlation_averages_over_seeds_first():
    differences = np.array([[1.0, 2.0, 9.0, 8.0], [1.0, 2.0, -1.0, 8.0]])  # mean 1 2 4 8
    assert leave_one_out_correlation(VALUES, differences) == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0}
    )
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15)
    assert leave_one_out_correlation(VALUES, differences[0])["spearman"] == pytest.approx(0.8)


def test_agreement_is_of_every_two_repeats():
    repeats = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 2.0, 1.0]])
    assert agreement(repeats) == pytest.approx([1, -1, -1])
    with pytest.raises(ValueError, match="two repeats or more"):
        agreement(repeats[:1])
