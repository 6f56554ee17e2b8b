"""`inrun train`, what it leaves, and what it refuses before anything is trained."""

import json

import pytest

from inrun.command.settings import MODELS, merged, run_config, settings_help
from inrun.config import ConfigError
from inrun.train import RunFolder
from tests.command.conftest import inrun


def test_documents_become_values_and_a_next_command(trained):
    done, folder = trained
    assert done.returncode == 0, done.stderr
    assert f"next: inrun bottom {folder}" in done.stderr
    with RunFolder(folder).values() as store:
        assert len(store.values("all" if "all" in store.targets else store.targets[0], "path")) > 0


def test_the_next_command_shows_texts(trained):
    _, folder = trained
    rows = [
        json.loads(line)
        for line in inrun(
            "bottom", folder, "-k", 2, "--method", "path", "--json"
        ).stdout.splitlines()
    ]
    corpus = RunFolder(folder).corpus()
    assert rows
    for row in rows:
        assert row["text"] == corpus.text(row["sample_id"])


def test_a_chunk_is_shown_whole_with_its_ranks(trained):
    _, folder = trained
    with RunFolder(folder).values() as store:
        target = store.targets[0]
        best = store.sql(
            "SELECT sample_id, step FROM terms WHERE target = "
            f"'{target}' ORDER BY path DESC LIMIT 1"
        ).to_pylist()[0]
    done = inrun(
        *("show", folder, best["sample_id"], "--target", target, "--method", "path", "--json")
    )
    shown = json.loads(done.stdout)
    assert shown["text"] == RunFolder(folder).corpus().text(best["sample_id"])
    assert {row["step"]: row["rank"] for row in shown["steps"]}[best["step"]] == 1
    unknown = inrun("show", folder, 10**9)
    assert unknown.returncode == 1
    assert "no value of a sample 1000000000" in unknown.stderr


def test_resume_of_a_finished_run_ends_well(trained):
    _, folder = trained
    done = inrun("resume", folder)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_counts_the_documents(trained):
    _, folder = trained
    raw = folder.parents[1] / "raw"
    done = inrun(
        *("train", raw, "--dry-run", "--data-root", folder.parents[1] / "data"),
        *("--set", "data.tokenizer=bytes", "--set", "data.val_share=0"),
        *("--set", "data.test_share=0"),
    )
    assert done.returncode == 0, done.stderr
    assert "240 train, 0 val, 0 test, 0 left out" in done.stdout


def test_a_vocabulary_that_does_not_fit_is_found_before_training(trained):
    _, folder = trained
    root = folder.parents[1]
    done = inrun(
        *("train", root / "raw", "--dry-run", "--data-root", root / "data"),
        *("--set", "data.tokenizer=bytes", "--set", "model.vocab_size=256"),
    )
    assert done.returncode == 1
    assert "256 token embeddings" in done.stderr


def test_the_model_decides_tokenizer_and_block_size():
    chosen = run_config("mine.jsonl", "gpt2-tiny", "path", (), ())
    assert (chosen.data.tokenizer, chosen.data.block_size) == ("gpt2-8k", 128)
    chosen = run_config("mine.jsonl", "pythia-410m", "path", (), ())
    assert (chosen.data.tokenizer, chosen.data.block_size) == ("pythia", 2048)
    for model in MODELS:
        assert run_config("mine.jsonl", model, "", (), ()).attribution.on is False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("foo.x=1", "unknown key 'foo'"),
        ("steps", "PART.KEY=VALUE"),
        ("train.steps=a", "expected int"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(change, told):
    with pytest.raises(ConfigError, match=told):
        run_config("mine.jsonl", "gpt2-tiny", "path", (), (change,))


def test_later_settings_win_at_every_depth():
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    changed = run_config(
        "m.jsonl", "gpt2-tiny", "path", ({"optim": {"lr": 0.5}},), ("optim.lr=1e-2",)
    )
    assert changed.optim.lr == 0.01


def test_every_setting_has_its_help():
    told = settings_help()
    assert "train.steps: Optimizer steps of the whole run." in told
    assert "attribution.method:" in told
