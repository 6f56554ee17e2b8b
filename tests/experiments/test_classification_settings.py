"""The classification study without a run: its configs, its refusals, its report on rows by hand."""

from pathlib import Path

import pytest
import yaml

from experiments.arguments import CONFIGS
from experiments.classification.published import NAMES, PAPER_AUROC, PAPER_SELECTION
from experiments.classification.report import report_text
from experiments.classification.settings import ClassificationConfig
from experiments.classification.study import by_data
from inrun.baselines import get_baseline
from inrun.config import ConfigError, build

FILES = Path(CONFIGS) / "classification"
ROW = {"method": "loss", "share": None, "seed": 0}


def test_every_config_names_baselines_whose_options_exist():
    for path in FILES.glob("*.yaml"):
        settings = build(ClassificationConfig, yaml.safe_load(path.read_text()))
        assert settings.data == path.stem == settings.problem.source
        assert set(settings.methods) <= set(NAMES)
        for method in settings.methods:
            name, options = settings.baseline(method, 7, Path("pool"))
            built = build(get_baseline(name).options, options)
            assert getattr(built, "trainings", settings.trainings) == settings.trainings
            assert getattr(built, "seed", 7) == 7
    assert set(PAPER_AUROC) | set(PAPER_SELECTION) <= set(NAMES)


def test_wrong_settings_are_named():
    good = yaml.safe_load((FILES / "digits.yaml").read_text())
    with pytest.raises(ConfigError, match="keep lists shares"):
        build(ClassificationConfig, {**good, "keep": [1.5]})
    with pytest.raises(ConfigError, match="options are for methods: bm25"):
        build(ClassificationConfig, {**good, "options": {"nobody": {}}})
    with pytest.raises(ConfigError, match=r"no nobody\.yaml"):
        build(ClassificationConfig, {**good, "methods": ["nobody"]}).baseline(
            "nobody", 0, Path("pool")
        )
    assert by_data(["scale=paper", "data=diabetes", "seeds=[0]"]) == [
        "classification=cifar10",
        "classification=diabetes",
        "seeds=[0]",
    ]


def test_report_of_one_seed_has_no_spread():
    rows = [
        {**ROW, "task": "detection", "quantity": "auroc", "value": 0.75},
        {**ROW, "task": "cost", "quantity": "cpu_seconds", "value": 0.5},
        {**ROW, "task": "cost", "quantity": "trainings", "value": 0},
    ]
    assert "| own loss, keep low |  | 0.750 |" in report_text(rows, "about")
