"""The pool of subset trainings: nothing is trained twice, whoever asks, and whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from inrun.baselines import score
from inrun.baselines.outcomes import SAMPLES, PoolError
from inrun.baselines.pool import Pool
from inrun.baselines.retrain import margins_and_correct
from inrun.baselines.subsets import random_subsets
from tests.support.retrain_example import digits_run, ridge_run

ROOT = Path(__file__).parents[2]


def requests(n: int = 12, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return random_subsets(n, count, 0.5)


def test_outcomes_are_what_each_training_led_to():
    run = digits_run(n=12, m=10)
    members, seeds = requests()
    outcomes = Pool(run, part=3).outcomes(members, seeds)
    assert (outcomes.members == members).all()
    assert (outcomes.seeds == seeds).all()
    for k in range(10):
        model = run.retrain(run.sample_ids[members[k]], int(seeds[k])).model()
        logits, validation = run.logits(model, run.sample_ids), run.target_logits(model, "val")
        np.testing.assert_array_equal(
            outcomes.losses[SAMPLES][k], run.losses(model, run.sample_ids).detach()
        )
        np.testing.assert_array_equal(
            outcomes.losses["val"][k], run.target_losses(model, "val").detach()
        )
        np.testing.assert_array_equal(outcomes.correct[SAMPLES][k], logits.argmax(1) == run.y)
        np.testing.assert_array_equal(
            outcomes.correct["val"][k], validation.argmax(1) == run.target_y
        )
        p = torch.softmax(logits.double(), 1)[torch.arange(12), run.y].detach()
        np.testing.assert_allclose(
            outcomes.margins[SAMPLES][k], (p / (1 - p)).log(), rtol=1e-5, atol=1e-6
        )
    assert outcomes.utility("val", "accuracy") == pytest.approx(outcomes.correct["val"].mean(1))


def test_a_repeated_request_is_trained_once():
    run = digits_run(n=12, m=10)
    members, seeds = requests()
    pool = Pool(run)
    twice = pool.outcomes(
        np.concatenate([members, members[::-1]]), np.concatenate([seeds, seeds[::-1]])
    )
    assert len(run.trainings) == len(pool) == pool.trained == 10
    np.testing.assert_array_equal(twice.losses["val"][:10], twice.losses["val"][:9:-1])
    pool.outcomes(members[:4], seeds[:4] + 1)  # another seed is another request
    assert pool.trained == 14


def test_another_pool_on_the_folder_trains_only_what_is_missing(tmp_path):
    first, second = digits_run(n=12, m=10), digits_run(n=12, m=10)
    members, seeds = requests()
    expected = Pool(first).outcomes(members, seeds)
    a, b = Pool(first, tmp_path / "pool", part=4), Pool(second, tmp_path / "pool", part=4)
    a.outcomes(members[:7], seeds[:7])
    assert b.missing(members, seeds).tolist() == [False] * 7 + [True] * 3
    found = b.outcomes(members, seeds)
    assert (a.trained, b.trained) == (7, 3)
    for key in ("val", SAMPLES):
        np.testing.assert_array_equal(found.losses[key], expected.losses[key])
        np.testing.assert_array_equal(found.margins[key], expected.margins[key])
        np.testing.assert_array_equal(found.correct[key], expected.correct[key])
    assert {path.suffix for path in (tmp_path / "pool").iterdir()} == {".npz", ".json"}


def test_methods_share_trainings_and_each_is_charged_in_full(tmp_path):
    run = digits_run(n=12, m=10)
    folder = str(tmp_path)
    first = score(run, "val", "empirical_influence", pool=folder, trainings=20)
    assert len(run.trainings) == 20
    for name in ("datamodels", "memorization", "empirical_influence"):
        scored = score(run, "val", name, pool=folder, trainings=20)
        assert len(run.trainings) == 20, "nothing is trained again"
        assert scored.cost.trainings == 20
        assert scored.cost.cpu_seconds > 0.3 * first.cost.cpu_seconds
    assert scored.values.tolist() == first.values.tolist()


def test_a_killed_process_loses_its_last_part_only(tmp_path):
    script = """
        import os, signal, sys
        from inrun.baselines import pool as module
        from tests.baselines.test_pool import requests, digits_run
        write, left = module.np.savez, [3]
        def deadly(file, **arrays):
            left[0] -= 1
            if left[0] == 0:
                file.write(b"half a part"); file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(file, **arrays)
        module.np.savez = deadly
        module.Pool(digits_run(n=12, m=10), sys.argv[1], part=3).outcomes(*requests())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL
    run = digits_run(n=12, m=10)
    pool = Pool(run, tmp_path)
    assert len(pool) == 6
    expected = Pool(digits_run(n=12, m=10)).outcomes(*requests())
    np.testing.assert_array_equal(pool.outcomes(*requests()).losses["val"], expected.losses["val"])
    assert len(run.trainings) == 4


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    Pool(digits_run(n=12, m=10), tmp_path)
    other = digits_run(n=12, m=10)
    other.digest = "another"
    with pytest.raises(PoolError, match="give it another folder"):
        Pool(other, tmp_path)
    assert json.loads((tmp_path / "pool.json").read_text())["recipe"] == "example"


def test_margins_do_not_saturate_and_labels_may_be_anywhere():
    margins, correct = margins_and_correct(
        torch.tensor([[60.0, 0.0], [60.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 1])
    )
    assert margins.tolist() == [60.0, -60.0, 0.0]
    assert correct.tolist() == [True, False, False]


def test_a_damaged_part_is_named(tmp_path):
    pool = Pool(digits_run(n=12, m=10), tmp_path)
    pool.outcomes(*requests())
    (part,) = tmp_path.glob("part-*.npz")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(PoolError, match=f"{part.name} cannot be read.*delete it"):
        Pool(digits_run(n=12, m=10), tmp_path)


def test_what_a_pool_cannot_do_is_said():
    run = ridge_run()
    pool = Pool(run)
    with pytest.raises(PoolError, match=r"requests are bool \[k, 6\]"):
        pool.outcomes(np.ones((2, 6)), [0, 1])
    outcomes = pool.outcomes(np.ones((2, 6), bool), [0, 1])
    for utility in ("accuracy", "margin"):
        with pytest.raises(PoolError, match="utility='loss'"):
            outcomes.utility("val", utility)
    with pytest.raises(PoolError, match="cannot be trained again"):
        Pool(type("Finished", (), {"targets": ("val",), "sample_ids": np.arange(3)})())
    run.targets = (SAMPLES,)
    with pytest.raises(PoolError, match="may not be called"):
        Pool(run)
    with pytest.raises(PoolError, match="at least one"):
        random_subsets(3, 2, 0.1)
