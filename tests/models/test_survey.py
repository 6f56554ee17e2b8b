"""A small part of the survey: thirty model types whose values are exact, and its own judgement."""

import csv
import time
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from experiments.artifacts import RESULTS
from experiments.survey import report, value
from experiments.survey.processes import Isolated
from experiments.survey.study import SurveyConfig, chosen
from experiments.survey.value import DOUBLE, SINGLE, survey
from inrun.config import ConfigError

#: one of each family: norms, positions, gates, experts of a kind, convolutions, encoders, decoders
EXACT = [
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "llama", "mistral", "qwen3", "gemma2",
    "phi3", "falcon", "mpt", "codegen", "bert", "roberta", "albert", "distilbert", "electra",
    "deberta-v2", "t5", "bart", "marian", "whisper", "vit", "swin", "resnet", "convnext", "clip",
    "segformer",
]  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    """Configs as small as these make transformers warn of what nobody would choose."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("model_type", EXACT)
def test_a_step_of_this_type_is_valued_exactly(model_type):
    row = survey(model_type)
    assert row["status"] == "exact", row
    assert row["error"] <= (SINGLE if row["single"] else DOUBLE)


def test_batch_norm_in_training_is_refused_by_name():
    assert survey("resnet")["batchnorm"] == "refused: MixedSamplesError"


def test_a_value_that_is_off_is_called_wrong(monkeypatch):
    right = value.valued

    def one_sample_off(built, route):
        found = right(built, route)
        found["path"][2] *= 1.001
        return found

    monkeypatch.setattr(value, "valued", one_sample_off)
    assert survey("gpt2")["status"] == "wrong"


def test_an_error_of_a_library_is_told_from_a_refusal(monkeypatch):
    def died(built, route):
        raise RuntimeError("of torch's words")

    monkeypatch.setattr(value, "valued", died)
    assert survey("gpt2")["status"] == "died"


def test_a_process_that_takes_too_long_leaves_a_row_that_says_so(tmp_path):
    row = Isolated(time.sleep, 0.5, 2.5, preload=()).row(60, tmp_path / "sleep.json")
    assert row["status"] == "not built"
    assert "0.5 s" in row["why"]


def test_a_part_of_the_types_is_not_recorded():
    with pytest.raises(ConfigError, match="record=true is for all types"):
        SurveyConfig(only="gpt2", record=True)
    assert chosen("gpt2|peft/LORA") == ["gpt2", "peft/LORA"]


def test_the_page_is_made_of_the_committed_rows():
    with (RESULTS / "survey.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    page = Path(report.PAGE).read_text(encoding="utf-8")
    assert page == report.page(rows)


def test_nothing_committed_is_wrong_in_silence_and_most_types_are_exact():
    with (RESULTS / "survey.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "not built"]
    assert not [row["type"] for row in rows if row["status"] in ("wrong", "died")]
    exact = sum(row["status"] == "exact" for row in rows)
    assert exact >= 0.9 * len(rows), f"{exact} of {len(rows)}"
