"""The study of intervals: its comparison by hand, and the command on a model of seconds."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.intervals.study import compare
from tests.support.experiment_example import CORPUS, MODEL, places


def test_the_study_compares_measurement_with_measurement():
    def values(steps, numbers):
        n = len(steps)
        columns = {
            "step": steps,
            "sample_id": [0, 1, 2] * (n // 3),
            "domain": ["a", "b", "c"] * (n // 3),
        }
        return pa.table({**columns, "value": [float(x) for x in numbers]})

    truth = values([0, 0, 0, 1, 1, 1], [1, 2, 3, 3, 2, 1.5])
    assert compare(truth, truth) == {
        "within_step": 1.0,
        "samples": 1.0,
        "domains": 1.0,
        "measured": 1.0,
    }
    second_step = compare(values([1, 1, 1], [3, 2, 1.5]), truth)
    assert second_step["within_step"] == 1.0
    assert second_step["measured"] == 0.5
    # means 2, 2, 2.25 against 3, 2, 1.5: ranks (1.5, 1.5, 3) and (3, 2, 1), correlation -sqrt(3)/2
    assert second_step["samples"] == pytest.approx(-(3**0.5) / 2)


def test_the_command_compares_every_option_with_the_run_that_measures_everything(
    shared, typed, tmp_path
):
    small = [
        *places(shared, tmp_path), *CORPUS, *MODEL, "name=small", "train.steps=6",
        "train.batch_size=8",
        "optim.warmup=2", "k=[2]", "attribution.method=[{kind: first_order}]",
        "attribution.targets=[{name: law, domains: [FreeLaw], chunks: 3}]",
    ]  # fmt: skip
    typed("intervals", small)
    rows = pq.read_table(tmp_path / "small" / "intervals.parquet").to_pylist()
    assert [(row["option"], row["k"]) for row in rows] == [("refresh", 2), ("every", 2)]
    by_option = {row["option"]: row for row in rows}
    assert by_option["every"]["within_step"] == pytest.approx(1)
    assert (by_option["every"]["measured"], by_option["refresh"]["measured"]) == (0.5, 1)
    for kind in ("md", "png", "svg"):
        assert (tmp_path / "small" / f"intervals.{kind}").is_file()
