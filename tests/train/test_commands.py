"""The commands as a user types them: what they print, what they leave, and with which status they
end.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import pretrain
from experiments.demo import study as demo
from experiments.frame import command, permissive, reported, scaled
from inrun.store import ValueStore
from inrun.train import ConfigError, Interrupted
from tests.support.train_example import write_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function that runs a command in this process: its stdout and stderr; the exit status is
    checked.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, main=pretrain.main, config="pretrain", expect=0):
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        status = 0
        try:
            command(config, main)
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        assert status == expect, captured.err
        return captured.out, captured.err

    return run


def small(root: Path, name: str) -> list[str]:
    """Overrides for a run of seconds on local documents."""
    return [
        f"name={name}", f"runs={root}/runs", f"data_root={root}/data", "data=files", f"data.path={root}/raw", "data.tokenizer=bytes",
        "data.block_size=32", "data.val_share=0.2", "data.noise=0.2", "model.vocab_size=320", "model.block_size=32", "model.n_layer=1",
        "model.n_head=2", "model.d_model=32", "train.steps=8", "train.batch_size=8", "train.eval_every=0", "train.eval_chunks=2",
        "optim.warmup=2", "train.device=cpu", "log.every=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_documents(root / "raw")
    return root


def test_one_word_chooses_the_scale_of_every_experiment():
    given = ["scale=paper", "+scale=cpu", "optim.scale=2", "-m"]
    assert scaled(given, "fidelity") == ["fidelity=paper", "fidelity=cpu", "optim.scale=2", "-m"]


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


def test_run_resume_and_bad_arguments_from_the_command_line(root, typed):
    out, err = typed(*small(root, "typed"))
    folder = root / "runs" / "typed"
    assert "step 8/8" in err
    assert re.search(r"val, first_order: loss fell by -?\d\.\d{4} nats over 8 steps", out)
    with ValueStore(folder / "values") as store:
        assert len(store.sql("SELECT * FROM terms")) == 8 * 8
    about = json.loads((folder / "run.json").read_text())
    assert (about["config"]["train"]["steps"], about["config"]["model"]["n_layer"]) == (8, 1)
    assert not (folder / ".hydra").exists()

    _, err = typed(*small(root, "typed"), expect=1)
    assert "RunFolderError" in err
    assert "exists already. Next: go on with it by resume=" in err
    assert "Traceback" not in err

    out, err = typed(f"resume={folder}")
    assert "done: 8 steps" in err
    _, err = typed(f"resume={folder}", "train.steps=9", expect=1)
    assert "resume goes on by the run's own config" in err
    assert "train.steps=9" in err


def test_unknown_key_is_an_error_that_names_the_known_ones(root, typed):
    _, err = typed(*small(root, "unknown"), "optim.learning_rate=1", expect=1)
    assert "config.optim: unknown key 'learning_rate'; known are name, lr, min_lr" in err
    assert not (root / "runs" / "unknown").exists()


def test_dry_run_shows_config_and_estimates_and_leaves_nothing(root, typed):
    out, _ = typed("experiment=gpt2", "dry_run=true", f"runs={root}/dry", f"data_root={root}/dry")
    for expected in (
        "path: monology/pile-uncopyrighted",
        "lr: 0.0006",
        "parameters          124,373,760",
        "memory (estimate)",
        "8,000,000 rows",
    ):
        assert expected in out
    assert not (root / "dry").exists()


def test_pile_without_a_network_fails_at_once_and_names_the_way_without(root, typed):
    _, err = typed("experiment=pythia", f"runs={root}/pile", f"data_root={root}/pile", expect=1)
    assert "SourceUnreachable" in err
    assert "DATA=offline" in err
    assert not (root / "pile" / "runs").exists()


def test_demo_reports_what_the_store_holds(root, typed):
    targets = (
        "[{name: law, domains: [FreeLaw], chunks: 3}, {name: code, domains: [Github], chunks: 3}]"
    )
    out, _ = typed(
        *small(root, "demo"), f"attribution.targets={targets}", main=demo.main, config="demo"
    )
    folder = root / "runs" / "demo"
    written = (folder / "summary.md").read_text()
    with ValueStore(folder / "values") as store:
        rows = store.sql(
            "SELECT t.*, s.kind FROM terms t JOIN samples s USING (sample_id)"
        ).to_pylist()
        best = store.top(1, "law").to_pylist()[0]
    for target in ("law", "code"):
        values = [(row["path"], row["kind"] != "clean") for row in rows if row["target"] == target]
        bad, good = ([v for v, noise in values if noise is which] for which in (True, False))
        assert bad
        assert good
        # the probability that noise has the smaller value of a random pair, ties half
        wins = sum((b < g) + 0.5 * (b == g) for b in bad for g in good) / (len(bad) * len(good))
        section = written.split(f"## Target {target}")[1]
        assert f"by -value {wins:.3f}" in section
        assert f"{wins:.3f}" in out
    assert f"| {best['value']:+.2e} | {best['domain']} |" in written
    assert (folder / "domains.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "domains.svg").read_text()


def test_failed_command_ends_its_process_with_a_status():
    """Once as a process of its own, through `python -m`."""
    arguments = [sys.executable, "-m", "experiments.pretrain", "resume=nowhere"]
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
