"""The commands as a user types them: what they print, what they leave, and with which status they
end.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.arguments import composed, permissive, refuse_unquoted, scaled, spelled
from experiments.frame import reported
from inrun.config import ConfigError
from inrun.store import ValueStore
from inrun.train import Interrupted
from tests.support.experiment_example import small

ROOT = Path(__file__).parents[2]


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function that runs a command in this process: its stdout and stderr; the exit status is
    checked.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, name="pretrain", expect=0):
        status = 0
        try:
            main([name, *arguments])
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        assert status == expect, captured.err
        return captured.out, captured.err

    return call


def test_one_word_chooses_the_scale_of_every_experiment():
    given = ["scale=paper", "+scale=cpu", "optim.scale=2", "-m"]
    assert scaled(given, "fidelity") == ["fidelity=paper", "fidelity=cpu", "optim.scale=2", "-m"]


def test_what_is_said_about_hydra_on_the_command_line_wins_over_the_frame():
    found = spelled("fidelity", ["hydra.sweep.dir=there", "launcher=joblib"])
    assert [a for a in found if a.startswith("hydra.sweep.dir")] == ["hydra.sweep.dir=there"]
    assert found[-1] == "+launcher=joblib"
    assert "hydra.output_subdir=null" in found


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("raw/epoch=1.jsonl", "'raw/epoch=1.jsonl'"),
        ("raw/wiki (en).jsonl", "'raw/wiki (en).jsonl'"),
        ("raw/données.jsonl", "'raw/données.jsonl'"),
        ("raw/it's (e).jsonl", r"'raw/it\'s (e).jsonl'"),
    ],
)
def test_value_that_hydra_cannot_read_is_shown_quoted(typed, value, quoted):
    _, err = typed(f"data.path={value}", expect=1)
    assert f'"data.path={quoted}"' in err
    refuse_unquoted([f"data.path={quoted}", "-m", "a.b=1,2", "c=[x, y]", "~d"])


def test_name_of_digits_is_shown_quoted(typed):
    _, err = typed("name=20261127", expect=1)
    assert "name='\"20261127\"'" in err


def test_blocks_and_tokenizer_of_ones_own_documents_follow_from_the_model():
    def chosen(*arguments):
        data = composed("pretrain", ["data=files", *arguments])["data"]
        return data["block_size"], data["tokenizer"]

    assert chosen() == (128, "gpt2-8k")
    assert chosen("model=gpt2-124m") == (1024, "gpt2")
    assert chosen("model=pythia-14m", "data.block_size=64") == (64, "pythia")
    assert chosen("data.tokenizer=bytes") == (128, "bytes")


def test_help_lists_groups_settings_and_examples(typed):
    out, _ = typed("--help")
    for expected in (
        "attribution: ",
        "first_order",
        "experiment=gpt2 dry_run=true",
        "resume=runs/NAME",
        "batch_size: 16",
    ):
        assert expected in out
    out, _ = typed("scale=paper", "--help", name="curation")
    assert "scale: cpu, paper" in out
    assert "# which controls are trained\n  controls: [" in out
    assert "steps: 10000" in out


def test_list_shows_every_command_with_the_first_line_of_its_docstring(capsys):
    main(["--list"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"pretrain", "demo", "pool", "bench", "throughput", "intervals"} <= set(lines)
    assert lines["fidelity"].startswith("How close values come to the exact Shapley values")
    assert all(len(about) <= 80 for about in lines.values())


def test_an_unknown_command_is_answered_with_the_known_ones(typed):
    with pytest.raises(SystemExit, match="no experiment 'fidelty'; choose from bench, "):
        main(["fidelty"])


def test_run_resume_and_bad_arguments_from_the_command_line(shared, typed):
    out, err = typed(*small(shared, "typed"))
    folder = shared / "runs" / "typed"
    assert "step 8/8" in err
    assert re.search(r"val, path: loss fell by -?\d\.\d{4} nats over 8 steps", out)
    with ValueStore(folder / "values") as store:
        assert len(store.sql("SELECT * FROM terms")) == 8 * 8
    about = json.loads((folder / "run.json").read_text())
    assert (about["config"]["train"]["steps"], about["config"]["model"]["n_layer"]) == (8, 1)
    assert not (folder / ".hydra").exists()

    _, err = typed(*small(shared, "typed"), expect=1)
    assert "RunFolderError" in err
    assert "exists already. Next: go on with it by resume=" in err
    assert "Traceback" not in err

    out, err = typed(f"resume={folder}")
    assert "done: 8 steps" in err
    _, err = typed(f"resume={folder}", "train.steps=9", expect=1)
    assert "resume goes on by the run's own config" in err
    assert "train.steps=9" in err


def test_unknown_key_is_an_error_that_names_the_known_ones(shared, typed):
    _, err = typed(*small(shared, "unknown"), "optim.learning_rate=1", expect=1)
    assert "config.optim: unknown key 'learning_rate'; known are name, lr, min_lr" in err
    assert not (shared / "runs" / "unknown").exists()


def test_dry_run_shows_config_and_estimates_and_leaves_nothing(shared, typed):
    out, _ = typed(
        "experiment=gpt2", "dry_run=true", f"runs={shared}/dry", f"data_root={shared}/dry"
    )
    for expected in (
        "path: monology/pile-uncopyrighted",
        "lr: 0.0006",
        "parameters          124,373,760",
        "memory (estimate)",
        "8,000,000 rows",
    ):
        assert expected in out
    assert not (shared / "dry").exists()


def test_pile_without_a_network_fails_at_once_and_names_the_way_without(shared, typed):
    _, err = typed("experiment=pythia", f"runs={shared}/pile", f"data_root={shared}/pile", expect=1)
    assert "SourceUnreachable" in err
    assert "DATA=offline" in err
    assert not (shared / "pile" / "runs").exists()


def test_failed_command_ends_its_process_with_a_status():
    """Once as a process of its own, through `python -m`."""
    arguments = [sys.executable, "-m", "experiments", "pretrain", "resume=nowhere"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "RunFolderError: nowhere is no run" in done.stderr
    assert "Traceback" not in done.stderr


def test_dotted_keys_may_be_new_and_everything_else_is_left_to_hydra():
    given = [
        "a.b=1",
        "data=files",
        "+a.b=1",
        "hydra.mode=MULTIRUN",
        "-m",
        "x=1.5",
        "~a.b",
        "resume=runs/a.b",
    ]
    assert permissive(given) == ["++a.b=1", *given[1:]]


def test_failures_end_the_process_with_a_status_and_bugs_keep_their_traceback(capsys):
    with pytest.raises(SystemExit) as end, reported():
        raise ConfigError("no")
    assert end.value.code == 1
    with pytest.raises(SystemExit) as end, reported():
        raise Interrupted(15, "stopped")
    assert end.value.code == 128 + 15
    with pytest.raises(ZeroDivisionError), reported():
        1 / 0
    assert "ConfigError: no" in capsys.readouterr().err
