"""Tables, figures and committed results of experiments."""

import csv
import json
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import artifacts as outputs
from experiments.artifacts import Outputs, digest
from experiments.tables import markdown
from inrun.train import ConfigError

CONFIG = {
    "seeds": [0, 1],
    "lr": 1e-3,
    "runs": "runs/x",
    "name": None,
    "data_root": "data",
    "record": True,
}


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_places_do_not_change_the_digest_and_settings_do():
    assert digest(CONFIG) == digest({**CONFIG, "runs": "elsewhere", "name": "n", "record": False})
    assert digest(CONFIG) == digest(dict(reversed(CONFIG.items())))
    assert digest(CONFIG) != digest({**CONFIG, "lr": 2e-3})


def test_the_same_config_opens_the_same_folder_and_knows_that_it_is_finished(tmp_path):
    out = Outputs.open(tmp_path, CONFIG)
    assert out.folder == tmp_path / digest(CONFIG)
    assert not out.finished
    out.finish()
    assert Outputs.open(tmp_path, {**CONFIG, "seeds": (0, 1)}).finished, (
        "a tuple is the list that JSON makes of it"
    )
    assert not Outputs.open(tmp_path, {**CONFIG, "lr": 1.0}).finished


def test_a_named_folder_of_other_settings_is_refused(tmp_path):
    Outputs.open(tmp_path, CONFIG, "mine")
    Outputs.open(tmp_path, CONFIG, "mine")
    with pytest.raises(ConfigError, match="mine holds results of other settings"):
        Outputs.open(tmp_path, {**CONFIG, "lr": 1.0}, "mine")


def test_a_table_is_written_as_parquet_and_markdown(tmp_path):
    out = Outputs.open(tmp_path, CONFIG)
    out.table("t", [{"a": 1, "b": np.float64(1 / 3)}, {"a": 2, "c": "x|y"}])
    assert out.rows("t") == [
        {"a": 1, "b": 1 / 3, "c": None},
        {"a": 2, "b": None, "c": "x|y"},
    ]
    assert (out.folder / "t.md").read_text() == (
        "| a | b | c |\n| --- | --- | --- |\n| 1 | 0.3333 |  |\n| 2 |  | x\\|y |\n"
    )
    out.table("t", pq.read_table(out.folder / "t.parquet").slice(0, 1), text="short")
    assert (out.folder / "t.md").read_text() == "short\n"
    assert pq.read_table(out.folder / "t.parquet").num_rows == 1
    assert markdown([]) == ""


def test_names_of_others_are_text_in_a_table():
    table = markdown([{"a|b": "<img src=x>", "domain": "[c](d) `e`\n\x1b"}])
    assert table.splitlines() == [
        r"| a\|b | domain |",
        "| --- | --- |",
        r"| &lt;img src=x&gt; | \[c\](d) \`e\` . |",
    ]


def test_equal_figures_give_equal_bytes(tmp_path):
    out = Outputs.open(tmp_path, CONFIG)

    def plotted():
        figure, axis = plt.subplots(figsize=(2, 2))
        axis.plot([1, 2], [3, 4], label="line")
        axis.legend()
        out.figure("f", figure)
        return [(out.folder / f"f.{kind}").read_bytes() for kind in ("svg", "png")]

    first = plotted()
    assert first == plotted()
    assert first[1].startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_recording_replaces_rows_of_the_same_config_only(tmp_path):
    one, two = Outputs.open(tmp_path, CONFIG), Outputs.open(tmp_path, {**CONFIG, "lr": 1.0})
    one.record("r", [{"seed": 0, "auroc": 0.5}, {"seed": 1, "auroc": 0.123456789012}], tmp_path)
    two.record("r", [{"seed": 0, "auroc": 0.7, "note": "a, b"}], tmp_path)
    path = one.record("r", [{"seed": 0, "auroc": np.float64(0.25)}], tmp_path)
    rows = read(path)
    assert [(r["seed"], r["auroc"], r["note"], r["config_digest"]) for r in rows] == [
        ("0", "0.7", "a, b", digest({**CONFIG, "lr": 1.0})),
        ("0", "0.25", "", digest(CONFIG)),
    ]
    assert list(rows[0]) == ["seed", "auroc", "note", "config_digest", "revision"]
    assert {r["revision"] for r in rows} == {outputs.revision()}
    configs = json.loads((tmp_path / "r-configs.json").read_text())
    assert set(configs) == {r["config_digest"] for r in rows}
    assert configs[digest(CONFIG)] == {"seeds": [0, 1], "lr": 1e-3}


def test_results_recorded_later_have_the_revision_that_obtained_them(tmp_path):
    out = Outputs.open(tmp_path, CONFIG)
    (out.folder / "finished").write_text("of old\n")
    assert [row["revision"] for row in read(out.record("r", [{"seed": 0}], tmp_path))] == ["of old"]


def test_the_revision_says_when_code_differs_from_the_commit(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    results = tmp_path / "experiments" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(outputs, "RESULTS", results)
    fresh = outputs.revision.__wrapped__
    code, text, table = tmp_path / "code.py", tmp_path / "README.md", results / "r.csv"
    for path in (code, text, table):
        path.write_text("1\n")
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "m")
    clean = fresh()
    assert len(clean) == 40
    for path in (text, table):
        path.write_text("2\n")
    assert fresh() == clean
    code.write_text("2\n")
    assert fresh() == clean + "-dirty"
