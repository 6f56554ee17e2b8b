"""A study that is added from outside the package: what it takes, and what the frame gives it.

Two files, this one and the YAML that it writes: settings, `measure` and `report` under one
decorator. In the package it is five: study.py, report.py, README.md, configs/NAME.yaml, a test.
"""

import csv
from dataclasses import dataclass

import pytest

from experiments.__main__ import main
from experiments.frame import COMMANDS, StudyConfig, study
from inrun.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class ToyConfig(StudyConfig):
    """Squares of numbers."""

    numbers: tuple[int, ...]
    """what is squared"""


MEASURED = []


def report(out, settings):
    rows = out.rows("toy")
    out.text("toy", f"the squares add up to {sum(row['square'] for row in rows)}")


def measure(settings, out, console):
    MEASURED.append(settings.numbers)
    out.table("toy", [{"number": n, "square": n * n} for n in settings.numbers])


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Registered for one test; its config lies beside its runs."""
    (tmp_path / "toy.yaml").write_text(
        f"name: null\nruns: {tmp_path}/runs\nrecord: false\nnumbers: [1, 2]\n"
    )
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "paper.yaml").write_text("# @package _global_\nnumbers: [10, 20]\n")
    monkeypatch.setattr("experiments.arguments.CONFIGS", str(tmp_path))
    monkeypatch.setattr("experiments.artifacts.RESULTS", tmp_path / "results")
    MEASURED.clear()
    with COMMANDS.restored():
        study("toy", ToyConfig, report)(measure)
        yield tmp_path


def test_a_study_from_outside_is_measured_once_shown_and_recorded(toy, capsys):
    main(["toy", "name=first", "record=true"])
    assert capsys.readouterr().out == "the squares add up to 5\n\n"
    main(["toy", "name=first"])
    assert MEASURED == [(1, 2)], "the second call finds it finished"
    with (toy / "results" / "toy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["number"], row["square"]) for row in rows] == [("1", "1"), ("2", "4")]
    assert all(row["config_digest"] and row["revision"] for row in rows)


def test_its_report_is_made_again_from_the_rows(toy, capsys):
    main(["toy", "name=first"])
    text = toy / "runs" / "first" / "toy.md"
    text.write_text("torn")
    main(["toy", "name=first", "--recompute-report"])
    assert text.read_text() == "the squares add up to 5\n"
    assert MEASURED == [(1, 2)]
    with pytest.raises(SystemExit) as end:
        main(["toy", "name=other", "--recompute-report"])
    assert end.value.code == 1
    assert "is not measured to its end" in capsys.readouterr().err
    assert not (toy / "runs" / "other").exists()


def test_a_sweep_and_a_wrong_setting_of_it(toy, capsys):
    main(["toy", "-m", "numbers=[1],[3]", "name='of-${numbers}'"])
    assert sorted(MEASURED) == [(1,), (3,)]
    with pytest.raises(SystemExit):
        main(["toy", "+number=3"])
    assert "unknown key 'number'; known are runs" in capsys.readouterr().err


def test_help_and_list_know_it(toy, capsys):
    main(["--list"])
    assert "toy " in capsys.readouterr().out
    main(["toy", "--help"])
    out = capsys.readouterr().out
    assert "A study that is added from outside the package" in out
    assert "  # what is squared\n  numbers: [1, 2]" in out


def test_a_second_study_of_the_same_name_is_refused(toy):
    with pytest.raises(ValueError, match="two entries for the experiment 'toy'"):
        study("toy", ToyConfig, report)(lambda settings, out, console: None)
    assert isinstance(COMMANDS["toy"].settings, type)
    with pytest.raises(ConfigError, match="no experiment 'tow'"):
        COMMANDS["tow"]
