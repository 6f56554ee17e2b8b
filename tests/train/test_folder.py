"""What a run folder holds, and what is said of one that does not hold it."""

import json

import pytest

from inrun.train import ConfigError, Run, RunFolder, RunFolderError, RunRecord
from inrun.train.record import FORMAT
from tests.support.train_example import config, lines, tables, write_documents


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps, with values and losses of chunks."""
    root = tmp_path_factory.mktemp("folder")
    write_documents(root / "raw")
    run = Run.start(config(root, "run", train__steps=2, train__checkpoint_every=1))
    run.train().close()
    return RunFolder.open(run.folder)


@pytest.fixture(scope="module")
def plain(run):
    """The folder of a run without values and losses of chunks."""
    settings = config(
        run.path.parents[1],
        "plain",
        train__steps=1,
        attribution__method=[],
        log__chunk_losses=False,
    )
    other = Run.start(settings)
    other.train()
    return RunFolder.of(settings)


def test_record_goes_to_json_and_back(run):
    record = run.record()
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.config == config(
        run.path.parents[1], "run", train__steps=2, train__checkpoint_every=1
    )
    assert record.corpus_digest == run.corpus().whole_digest
    assert record.chunks["count"] == len(run.corpus())
    assert list(record.to_json())[:3] == ["format", "config", "corpus"]


def test_record_of_a_run_from_before_own_targets_is_read(run):
    values = run.record().to_json()
    del values["targets"], values["evaluation"]
    assert RunRecord.from_json(values).targets == {}
    assert RunRecord.from_json(values).evaluation is None
    assert RunRecord.from_json(values | {"own_targets": {"mine": "1f"}}).targets == {"mine": "1f"}


def test_files_are_read_through_the_folder(run):
    assert [path.name for path in run.checkpoints()] == ["step-000000001", "step-000000002"]
    assert run.checkpoint(2) == run.checkpoints()[-1]
    assert [row["iter"] for row in run.log()] == [row["iter"] for row in lines(run.path)]
    assert run.chunk_losses() == lines(run.path, "chunks.jsonl")
    assert run.chunks(run.corpus()).ids.tolist() == list(range(len(run.corpus())))
    assert run.has_values
    with run.values() as store:
        assert len(store.sql("SELECT * FROM terms")) == len(tables(run.path)["terms"])
    assert run.corpus("val").split == "val"


def test_files_of_a_run_are_all_known(run):
    known = {
        run.record_file,
        run.log_file,
        run.chunk_losses_file,
        run.checkpoints_folder,
        run.values_folder,
    }
    assert set(run.path.iterdir()) == known


def test_what_was_not_asked_for_is_not_there(plain):
    assert not plain.has_values
    with pytest.raises(ConfigError, match=r"no chunks\.jsonl; train with log\.chunk_losses=true"):
        plain.chunk_losses()


def test_folder_that_is_no_run_or_of_another_version_is_refused(run, plain, tmp_path):
    with pytest.raises(RunFolderError, match=r"has no run\.json.*runs beside it: .*plain, .*run"):
        RunFolder.open(run.path.parent / "nothing")
    values = run.record().to_json() | {"format": FORMAT + 1}
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        RunFolder.open(tmp_path).record()
    with pytest.raises(RunFolderError, match="exists already"):
        run.refuse_taken()
    RunFolder(tmp_path / "free").refuse_taken()
