"""The experiments that find training chunks, small: their ranks and recalls against the store, read
and counted in another way.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.artifacts import Outputs
from experiments.chunk_scores import in_step
from experiments.copyright.report import report_text, summary
from experiments.copyright.study import places, rank
from inrun.baselines.language import LanguageRun
from inrun.data.config import DataConfig, split_of
from inrun.data.errors import DataError
from inrun.store import ValueStore
from tests.support.experiment_example import CORPUS, MODEL
from tests.support.experiment_example import places as places_of


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory) -> Path:
    """Local documents, and rewritten texts of two of those that are trained on."""
    root = tmp_path_factory.mktemp("copyright")
    documents = [
        json.loads(line) for line in (shared / "raw" / "documents.jsonl").read_text().splitlines()
    ]
    rows = []
    data = DataConfig(val_share=0.2, test_share=0.2)
    trained_on = [
        k
        for k in range(4, 90, 3)
        if split_of(f"documents.jsonl:{k}", data) == "train" and len(documents[k]["text"]) > 60
    ]
    for k in trained_on[:2]:
        words = documents[k]["text"].split()
        rows.append(
            {
                "original": f"documents.jsonl:{k}",
                "level": "exact",
                "text": " ".join(words[len(words) // 2 :]),
            }
        )
        rows.append(
            {"original": f"documents.jsonl:{k}", "level": "close", "text": " ".join(words[::-1])}
        )
    (root / "rewritten.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


SMALL = [
    *CORPUS, *MODEL, "data.noise=0.0", "train.steps=6", "train.batch_size=48",
    "train.checkpoint_every=3",
    "influence.batch=64", "record=true",
    "attribution.method=[{kind: path}, {kind: first_order, update: sgd, name: paper}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def call(shared, root, typed):
    """A study in this process, with its results beside its runs."""

    def run(name: str, *arguments: str) -> None:
        typed(name, [*SMALL, *places_of(shared, root / "runs"), *arguments], root / "results")

    return run


@pytest.fixture(scope="module")
def study_copyright(shared, root, call):
    texts = [
        "texts.source=files",
        f"texts.path={shared}/raw",
        f"texts.variants={root}/rewritten.jsonl",
    ]
    return lambda: call("copyright", "name=small", *texts)


@pytest.fixture(scope="module")
def small(root, study_copyright) -> Outputs:
    """The finished study of copyright."""
    study_copyright()
    return Outputs(root / "runs" / "small", {})


def test_ranks_are_those_of_the_store_and_a_second_call_trains_nothing(
    root, small, study_copyright, capsys
):
    out = small
    rows = out.rows("copyright-ranks")
    methods = {
        "path",
        "paper",
        "path_in_step",
        "paper_in_step",
        "influence",
        "bm25",
        "embedding",
        "random",
    }
    assert {row["method"] for row in rows} == methods
    assert len(rows) == 2 * 2 * len(methods)
    for row in rows:
        if row["method"] not in ("path", "paper"):
            continue
        run = LanguageRun(out.folder / "run")
        doc_id = json.loads((out.folder / "texts" / "originals.json").read_text())[row["original"]]
        holding = {
            k for k, ids in enumerate(run.corpus.chunks["doc_ids"].to_pylist()) if doc_id in ids
        }
        with ValueStore(run.folder / "values") as store:
            order = store.top(10**6, f"{row['original']}/{row['level']}", row["method"])[
                "sample_id"
            ].to_pylist()
        assert row["rank"] == min(k for k, i in enumerate(order, start=1) if i in holding)
        assert row["chunks"] == len(order)
    for kind in ("svg", "png"):
        assert (out.folder / f"copyright.{kind}").stat().st_size > 1000
    with (root / "results" / "copyright.csv").open() as file:
        recorded = list(csv.DictReader(file))
    assert {(r["level"], r["family"]) for r in recorded} >= {("exact", "all"), ("close", "all")}

    before = {path: path.stat().st_mtime_ns for path in out.folder.glob("run/log.jsonl")}
    (out.folder / "finished").unlink()
    (out.folder / "copyright-ranks.parquet").unlink()
    study_copyright()
    assert "Claim: the original ranks first" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.folder.glob("run/log.jsonl")} == before
    assert out.rows("copyright-ranks") == rows


def test_recall_is_counted_from_the_store(root, call, capsys):
    call("retrieval", "name=domains", "chunks=2", "k=[10]")
    assert "# Normalised recall@10" in capsys.readouterr().out
    out = Outputs(root / "runs" / "domains", {})
    rows = {(row["domain"], row["method"]): row for row in out.rows("retrieval")}
    assert {domain for domain, _ in rows} == {"ArXiv", "Github", "FreeLaw"}
    with ValueStore(out.folder / "run" / "values") as store:
        for domain in ("ArXiv", "Github", "FreeLaw"):
            best = store.top(10, domain, "path")["domain"].to_pylist()
            everything = store.values(domain, "path")["domain"].to_pylist()
            share = everything.count(domain) / len(everything)
            row = rows[domain, "path"]
            assert row["recall"] == pytest.approx(best.count(domain) / 10 / share)
            assert row["largest"] == pytest.approx(1 / share)
            # its own words tell a domain from the others here
            assert rows[domain, "bm25"]["recall"] == pytest.approx(row["largest"])


def test_values_in_step_know_nothing_of_other_steps(small):
    with ValueStore(small.folder / "run" / "values") as store:
        found = in_step(store, "original-01/exact", "path")
        rows = store.sql(
            "SELECT step, sample_id, path FROM terms WHERE target = 'original-01/exact'"
        ).to_pylist()
    expected: dict[int, float] = {}
    for step in {row["step"] for row in rows}:
        own = {row["sample_id"]: row["path"] for row in rows if row["step"] == step}
        values = np.array(list(own.values()), dtype=np.float64)
        for i, value in own.items():
            expected[i] = expected.get(i, 0.0) + (value - values.mean()) / values.std()
    assert found == pytest.approx(np.array([expected[i] for i in sorted(expected)]))


def test_rank_counts_what_is_larger_and_half_of_what_is_equal():
    values = np.array([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    assert [rank(values, place) for place in range(6)] == [1, 5, 3, 3, 3, 6]


def test_original_that_was_not_trained_on_is_an_error(small):
    class Original:
        doc_id = "documents.jsonl:no"

    with pytest.raises(DataError, match=r"no chunk of .documents\.jsonl:no. was trained on"):
        places(LanguageRun(small.folder / "run"), Original())


def test_summary_gives_median_mean_share_and_the_verdict():
    rows = [
        {
            "level": "exact",
            "family": family,
            "original": f"o{k}",
            "method": method,
            "rank": float(r),
            "chunks": 100,
        }
        for method, ranks in (("path", (1, 1, 1, 9)), ("influence", (1, 2, 2, 30)))
        for k, (r, family) in enumerate(zip(ranks, "aabb"))
    ]
    found = {(row["family"], row["method"]): row for row in summary(rows)}
    every = found["all", "path"]
    assert (every["median_rank"], every["mean_rank"], every["first"], every["originals"]) == (
        1.0,
        3.0,
        0.75,
        4,
    )
    assert every["mean_rank_low"] <= 3.0 <= every["mean_rank_high"]
    assert found["b", "influence"]["median_rank"] == 16.0
    text = report_text(summary(rows))
    assert "path, AdamW, exact: holds, 75% ranked first." in text
    assert "influence function (EK-FAC), exact: does not hold, 25% ranked first." in text
