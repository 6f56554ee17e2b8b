"""What a run writes to its log."""

import io
import math

import pytest
from rich.console import Console

from inrun.store import ValueStore
from inrun.train import (
    Run,
)
from tests.support.train_example import config, lines, tables, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("log")
    write_documents(root / "raw")
    return root


def test_log_has_the_keys_that_are_promised(root):
    run = Run.start(config(root, "log"))
    store = run.train()
    rows = lines(run.folder)
    assert [row["iter"] for row in rows] == [0, 2, 4, 6, 6, 8, 10, 12, 12]
    training = {"iter", "train/loss", "lr", "grad_norm"}
    values = {
        f"value/{what}/{target}"
        for what in ("sum", "pos_frac", "entropy", "residual")
        for target in ("law", "all")
    }
    assert set(rows[2]) == training | values
    assert set(rows[-1]) == {
        "iter",
        "val/loss",
        *(f"val/loss/{domain}" for domain in ("ArXiv", "Github", "FreeLaw")),
    }
    terms = [
        row["path"]
        for row in tables(run.folder)["terms"]
        if row["step"] == 11 and row["target"] == "law"
    ]
    assert rows[-2]["value/sum/law"] == pytest.approx(sum(terms), rel=1e-5)
    assert rows[-2]["value/pos_frac/law"] == sum(value > 0 for value in terms) / len(terms)
    shares = [abs(value) / sum(map(abs, terms)) for value in terms]
    assert rows[-2]["value/entropy/law"] == pytest.approx(
        -sum(s * math.log(s) for s in shares) / math.log(8), rel=1e-5
    )
    ids = lines(run.folder, "chunks.jsonl")[4]["ids"]
    assert ids == run.batches.sampler.batch_at(4).tolist()
    assert isinstance(store, ValueStore)
    store.close()


def test_wandb_writes_offline_beside_the_run_and_waits_for_nobody(root):
    run = Run.start(
        config(root, "wandb", log__wandb="offline", attribution__method=[], train__steps=2)
    )
    run.train()
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_run_says_what_became_of_the_documents(tmp_path):
    write_documents(tmp_path / "raw")
    bad = b'{"text": "caf\xe9"}\n' * 3 + b'{"text": null}\n'
    (tmp_path / "raw" / "latin.jsonl").write_bytes(bad)
    (tmp_path / "raw" / "notes.csv").write_bytes(b"text\n")
    said = io.StringIO()
    with Run.start(config(tmp_path, "told", train__steps=1), Console(file=said)) as run:
        counts = run.corpus.manifest["counts"]
    line = next(line for line in said.getvalue().splitlines() if line.startswith("corpus: "))
    assert line.startswith(f"corpus: {counts['documents']:,} documents: {counts['used']:,} used, ")
    assert "3 left out (not UTF-8)" in line
    assert "1 left out (null)" in line
    assert line.endswith("passed over: notes.csv (of no known kind)")
