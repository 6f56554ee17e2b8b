"""Training on a part of the corpus: by a file, by values on the way, and runs that are not
repeated.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inrun.baselines.language import LanguageRun
from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from inrun.store import ValueStore, ValueWriter
from inrun.train import (
    ChunkSelection,
    ConfigError,
    OnlineConfig,
    Run,
    RunFolderError,
    mean_chunk_losses,
    read_chunks,
    train_or_reuse,
    write_chunks,
)
from inrun.train.online import decide
from tests.support.train_example import config, in_step, lines, tables, weights, write_documents

ONE_METHOD = {
    "method": [{"kind": "path"}],
    "targets": [{"name": "law", "domains": ["FreeLaw"], "chunks": 3}],
    "flush_every": 3,
}


def crash():
    raise KeyError


def plain(root, name, **changes):
    """Without values, which most of this does not need."""
    return config(root, name, **{"attribution": {"method": []}, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("chunks")
    write_documents(root / "raw")
    return root


@pytest.fixture(scope="module")
def corpus(root):
    return Corpus.open(prepare(config(root).data, root / "data"))


@pytest.fixture(scope="module")
def kept(root, corpus):
    path, ids = root / "kept.parquet", np.array([7, 3, 11, 20, 21, 5, 40])
    write_chunks(path, ids, np.array([1.0, 1, 1, 1, 0, 1, 4]), corpus=corpus.whole_digest)
    return path


def test_only_listed_chunks_are_drawn_by_their_weights_and_a_resumed_run_needs_no_file(
    root, kept, monkeypatch
):
    whole = train_or_reuse(plain(root, "whole", train__chunks=str(kept)))
    drawn = [i for row in lines(whole, "chunks.jsonl") for i in row["ids"]]
    counts = {i: drawn.count(i) for i in {3, 5, 7, 11, 20, 21, 40}}
    assert sum(counts.values()) == len(drawn) == 12 * 8
    assert counts[21] == 0
    # 96 draws are 13 epochs of 7 and a part of one; chunk 40 has 4 of 9 parts: 3 or 4 draws of an
    # epoch
    assert 39 <= counts[40] <= 56
    about = json.loads((whole / "run.json").read_text())
    assert about["chunks"] == {"count": 7, "digest": read_chunks(kept).digest}

    assert set(LanguageRun(whole).sample_ids.tolist()) == set(drawn)
    run = Run.start(plain(root, "half", train__chunks=str(kept)))
    in_step(monkeypatch, run, 6, crash)
    with pytest.raises(KeyError):
        run.train()
    monkeypatch.undo()
    kept.rename(root / "moved.parquet")
    Run.resume(run.folder).train()
    (root / "moved.parquet").rename(kept)
    assert lines(run.folder, "chunks.jsonl") == lines(whole, "chunks.jsonl")
    digest = run.corpus.whole_digest
    write_chunks(run.folder / "chunks.parquet", np.arange(3), corpus=digest)
    with pytest.raises(RunFolderError, match=r"chunks\.parquet was altered"):
        Run.resume(run.folder)


def test_a_finished_run_is_found_and_another_one_under_its_name_refused(root, kept, corpus):
    settings = plain(root, "found", train__chunks=str(kept))
    folder = train_or_reuse(settings)
    stamp = (folder / "log.jsonl").stat().st_mtime_ns
    assert train_or_reuse(settings) == folder
    assert (folder / "log.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(RunFolderError, match="other optim"):
        train_or_reuse(plain(root, "found", train__chunks=str(kept), optim__lr=0.5))
    write_chunks(root / "other.parquet", np.arange(9), corpus=corpus.whole_digest)
    with pytest.raises(RunFolderError, match="trained on other chunks"):
        train_or_reuse(plain(root, "found", train__chunks=str(root / "other.parquet")))


def test_list_of_chunks_is_refused_for_another_corpus(root, kept, tmp_path):
    """Its numbers are of other texts there."""
    write_documents(tmp_path / "raw", seed=5)
    with pytest.raises(ConfigError, match="was made for another corpus"):
        Run.start(plain(tmp_path, "other", train__chunks=str(kept)))
    assert not (tmp_path / "runs" / "other").exists()


def test_weights_of_a_file_in_any_order_stay_with_their_chunks(tmp_path, corpus):
    table = pa.table({"sample_id": [9, 2, 30], "weight": [9.0, 2.0, 30.0]})
    pq.write_table(table, tmp_path / "mine.parquet")
    chunks = read_chunks(tmp_path / "mine.parquet", corpus)
    assert chunks.ids.tolist() == [2, 9, 30]
    assert chunks.weights.tolist() == [2.0, 9.0, 30.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"chunk": [1]}, "needs a column sample_id, it has chunk"),
        ({"sample_id": [1, 1]}, "chunk 1 is listed more than once"),
        ({"sample_id": [1, 10**6]}, "names chunk 1000000, but the train split has {count}"),
        ({"sample_id": [-1, 5]}, "train split has {count}"),
        ({"sample_id": [1, 2], "weight": [0.0, 0.0]}, "not all zero"),
        ({"sample_id": [1, 2], "weight": [-1.0, 2.0]}, "not negative"),
        ({"sample_id": pa.array([], pa.int64())}, "no chunk is left"),
    ],
)
def test_files_that_cannot_be_drawn_from_are_refused(tmp_path, table, message, corpus):
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    with pytest.raises(ConfigError, match=message.format(count=len(corpus))):
        read_chunks(tmp_path / "bad.parquet", corpus)


def test_no_file_and_no_parquet_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_chunks(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("ids")
    with pytest.raises(ConfigError, match="is no parquet file"):
        read_chunks(tmp_path / "text.parquet")


ONLINE = {"start": 5, "every": 3, "since": 3, "target": "law", "method": "path", "unit": "loss"}


def test_online_decisions_are_those_of_the_values_so_far_and_survive_a_crash(root, monkeypatch):
    settings = config(
        root, "online", online=ONLINE, attribution=ONE_METHOD, optim__lr=0.1, data__noise=0.5
    )
    whole = train_or_reuse(settings)
    rows = {row["step"]: row["ids"] for row in lines(whole, "chunks.jsonl")}
    terms = [row for row in tables(whole)["terms"] if row["target"] == "law"]
    for step in range(5, 12):
        decision = 5 if step < 8 else 8 if step < 11 else 11
        sums: dict[int, float] = {}
        for row in terms:
            if 3 <= row["step"] < decision:
                sums[row["sample_id"]] = sums.get(row["sample_id"], 0.0) + row["path"]
        assert min(sums.values()) < 0
        assert not {i for i, value in sums.items() if value < 0} & set(rows[step])

    run = Run.start(
        config(
            root,
            "online-crash",
            online=ONLINE,
            attribution=ONE_METHOD,
            optim__lr=0.1,
            data__noise=0.5,
        )
    )
    in_step(monkeypatch, run, 10, crash)
    with pytest.raises(KeyError):
        run.train()
    monkeypatch.undo()
    Run.resume(run.folder).train().close()
    assert tables(run.folder) == tables(whole)
    want, got = weights(whole), weights(run.folder)
    assert all(bool((want[name] == got[name]).all()) for name in want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 4, "target": "law"}, r"online.method=''.*methods \['path', 'first_order'\]"),
        ({"start": 4, "target": "code", "method": "path"}, "online.target='code'"),
        ({"start": 4, "since": 4}, "since must be before start"),
        ({"unit": "nats"}, "choose loss or step"),
    ],
)
def test_online_settings_that_cannot_be_meant_are_refused(root, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(root, "refused", online=changes)


def test_chunk_whose_values_cancel_stays(tmp_path):
    """Its mean is exactly 0: nothing says that it did harm."""
    with ValueWriter(tmp_path / "values", {"targets": ["val"], "methods": ["path"]}) as writer:
        writer.terms(0, [1, 2, 3], "val", {"path": [0.5, -0.5, 0.25]})
        writer.terms(1, [1, 2, 3], "val", {"path": [-0.5, 0.0, 0.25]})
    with ValueStore(tmp_path / "values") as store:
        kept = decide(OnlineConfig(start=2, unit="loss"), 2, store, ChunkSelection(np.arange(5)))
    assert kept.ids.tolist() == [0, 1, 3, 4]


def test_decisions_fall_at_start_and_then_every_so_many_steps():
    once, often, never = OnlineConfig(start=4), OnlineConfig(start=4, every=3), OnlineConfig()
    assert [once.decision(s) for s in (0, 3, 4, 5, 99)] == [None, None, 4, 4, 4]
    assert [often.decision(s) for s in (3, 4, 6, 7, 9, 10)] == [None, 4, 4, 7, 7, 10]
    assert never.decision(5) is None


def test_evaluation_on_the_test_split_of_some_domains(root):
    folder = train_or_reuse(
        plain(root, "tested", train__eval_split="test", train__eval_domains=["FreeLaw"])
    )
    row = [row for row in lines(folder) if "test/loss" in row][-1]
    assert row["test/loss"] == row["test/loss/FreeLaw"]
    assert "test/loss/ArXiv" not in row
    assert not any("val/loss" in row for row in lines(folder))
    with pytest.raises(ConfigError, match=r"eval_domains: the val split has no \['Law'\]"):
        Run.start(plain(root, "untested", train__eval_domains=["Law"]))


def test_means_are_those_of_the_rows_by_hand(root):
    folder = train_or_reuse(config(root, "means"))
    terms = [row for row in tables(folder)["terms"] if row["target"] == "all"]
    with ValueStore(folder / "values") as store:
        for unit in ("loss", "step"):
            got = store.means("all", "path", first=2, before=9, unit=unit).to_pylist()
            chosen = [row for row in terms if 2 <= row["step"] < 9]
            size = {
                step: 1.0
                if unit == "loss"
                else np.sqrt(np.mean([r["path"] ** 2 for r in chosen if r["step"] == step]))
                for step in range(2, 9)
            }
            of_sample: dict[int, list[float]] = {}
            for row in chosen:
                of_sample.setdefault(row["sample_id"], []).append(row["path"] / size[row["step"]])
            assert [row["sample_id"] for row in got] == sorted(of_sample)
            for row in got:
                parts = of_sample[row["sample_id"]]
                assert row["uses"] == len(parts)
                # a step's size and each quotient are rounded to float32, half a unit each
                rounding = 0.0 if unit == "loss" else 2 * 2.0**-24 * np.mean(np.abs(parts))
                error = abs(row["value"] - np.mean(parts))
                assert error <= rounding + 1e-12 * np.mean(np.abs(parts))
    losses = mean_chunk_losses(folder, first=3).to_pydict()
    by_hand: dict[int, list[float]] = {}
    for row in lines(folder, "chunks.jsonl"):
        if row["step"] >= 3:
            for i, loss in zip(row["ids"], row["losses"]):
                by_hand.setdefault(i, []).append(loss)
    assert losses["sample_id"] == sorted(by_hand)
    assert losses["value"] == pytest.approx(
        [np.mean(by_hand[i]) for i in sorted(by_hand)], rel=1e-12
    )
