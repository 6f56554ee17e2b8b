"""The sampler: ids as a pure function of (seed, step)."""

import numpy as np
import pytest

from inrun.data.sampler import Sampler


def draws(sampler: Sampler, steps: range) -> np.ndarray:
    return np.concatenate([sampler.batch_at(step) for step in steps])


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (7, 20), (1, 3)])
def test_every_epoch_holds_every_id_once(count, batch):
    epochs = 3
    stream = draws(Sampler(count, batch, seed=5), range(-(-count * epochs // batch)))[
        : count * epochs
    ]
    for epoch in stream.reshape(epochs, count):
        assert sorted(epoch) == list(range(count))


def test_a_resumed_run_draws_what_the_uninterrupted_run_draws():
    uninterrupted = Sampler(101, 8, seed=3)
    expected = [uninterrupted.batch_at(step) for step in range(60)]
    for step in (59, 0, 37, 12, 13):
        np.testing.assert_array_equal(Sampler(101, 8, seed=3).batch_at(step), expected[step])
        np.testing.assert_array_equal(uninterrupted.batch_at(step), expected[step])


def test_other_seeds_and_other_epochs_give_other_orders():
    first = draws(Sampler(64, 64, seed=0), range(1))
    assert (first != draws(Sampler(64, 64, seed=1), range(1))).any()
    assert (first != Sampler(64, 64, seed=0).batch_at(1)).any()


def test_draws_do_not_depend_on_the_version_of_numpy():
    # Philox4x64-10 of key (seed, epoch) and counter 0, then a stable sort: these ids may never
    # change.
    np.testing.assert_array_equal(Sampler(10, 10, seed=0).batch_at(0), PINNED_FIRST_EPOCH)
    words = np.random.Philox(key=np.array([0, 0], dtype=np.uint64)).random_raw(10)
    np.testing.assert_array_equal(sorted(range(10), key=lambda k: words[k]), PINNED_FIRST_EPOCH)


PINNED_FIRST_EPOCH = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_each_id_is_as_likely_to_come_first():
    epochs = 5000
    sampler = Sampler(10, 10, seed=11)
    counts = np.bincount([sampler.batch_at(epoch)[0] for epoch in range(epochs)], minlength=10)
    # binomial(5000, 0.1): standard deviation 21.2; ten counts within 5 of them
    assert np.abs(counts - epochs / 10).max() < 5 * 21.3


def test_ids_can_be_any_subset():
    ids = np.array([900, 3, 77, 12])
    assert sorted(Sampler(ids, 4, seed=0).batch_at(0)) == [3, 12, 77, 900]
    assert Sampler(ids, 4, seed=0).batch_at(0).dtype == np.int64


def test_epoch_at_counts_from_the_first_draw_of_the_batch():
    sampler = Sampler(10, 4, seed=0)
    assert [sampler.epoch_at(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_weighted_epochs_give_each_id_the_floor_or_the_ceiling_of_its_share():
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=50)
    share = 50 * weights / weights.sum()
    for epoch in range(20):
        counts = np.bincount(Sampler(50, 50, seed=1, weights=weights).batch_at(epoch), minlength=50)
        assert ((counts == np.floor(share)) | (counts == np.ceil(share))).all()
        assert counts.sum() == 50


def test_weighted_draws_are_unbiased_over_epochs():
    weights = np.array([0.2, 1.0, 0.3, 2.5, 1.1, 0.0, 0.4])
    epochs = 4000
    sampler = Sampler(7, 7, seed=2, weights=weights)
    mean = np.bincount(draws(sampler, range(epochs)), minlength=7) / epochs
    # per epoch a count is one of two neighbours: variance at most 1/4, so 5 standard errors are 5 *
    # 0.5 / sqrt(4000)
    np.testing.assert_allclose(mean, 7 * weights / weights.sum(), atol=5 * 0.5 / np.sqrt(epochs))
    assert mean[5] == 0


def test_equal_weights_are_a_permutation_again():
    plain, weighted = Sampler(33, 8, seed=4), Sampler(33, 8, seed=4, weights=np.full(33, 0.1))
    for step in range(12):
        np.testing.assert_array_equal(plain.batch_at(step), weighted.batch_at(step))


def test_trailing_zero_weights_are_never_drawn():
    sampler = Sampler(5, 5, seed=0, weights=[1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert set(draws(sampler, range(200))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ids_or_count=0, batch_size=1, seed=0), "nothing to draw"),
        (dict(ids_or_count=[], batch_size=1, seed=0), "nothing to draw"),
        (dict(ids_or_count=[0.5], batch_size=1, seed=0), "row of integers"),
        (dict(ids_or_count=4, batch_size=0, seed=0), "batch_size"),
        (dict(ids_or_count=4, batch_size=1, seed=-1), "seed"),
        (dict(ids_or_count=4, batch_size=1, seed=0, weights=[1, 1]), "one number per id"),
        (dict(ids_or_count=4, batch_size=1, seed=0, weights=[1, 1, -1, 1]), "not negative"),
        (dict(ids_or_count=4, batch_size=1, seed=0, weights=[0, 0, 0, 0]), "not all zero"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="counted from 0"):
        Sampler(4, 2, seed=0).batch_at(-1)
