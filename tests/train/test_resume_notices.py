"""A resume notices what has changed since the run began, and leaves one log without holes."""

import hashlib
import json
import os
import shutil
import signal

import numpy as np
import pytest

from inrun.config import ConfigError
from inrun.data.errors import ShardDamaged
from inrun.train import Interrupted, Run, RunFolder, RunFolderError
from tests.support.train_example import config, in_step, lines, write_documents


@pytest.fixture
def begun(tmp_path):
    """A run of one step that has a step to go."""
    write_documents(tmp_path / "raw")
    changes = {"train__steps": 2, "train__checkpoint_every": 1, "log__every": 1}
    run = Run.start(config(tmp_path, "run", **changes))
    run.train().close()
    shutil.rmtree(run.files.checkpoint(2))
    return run.files


def change_tokens(files, split, in_manifest):
    """Another text of the same size in a split, perhaps as if it had been prepared so."""
    corpus = files.corpus().folder
    shard = next((corpus / split).glob("*.bin"))
    tokens = np.frombuffer(shard.read_bytes(), "<u2").copy()
    letters = tokens < 256
    tokens[letters] = (tokens[letters] + 1) % 256
    shard.write_bytes(tokens.tobytes())
    manifest = json.loads((corpus / "manifest.json").read_text())
    if in_manifest:
        entry = manifest["splits"][split]["shards"][0]["tokens"]
        entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
        (corpus / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("in_manifest", [False, True])
def test_tokens_changed_in_any_split_are_refused(begun, split, in_manifest):
    change_tokens(begun, split, in_manifest)
    expected = (RunFolderError, "another corpus") if in_manifest else (ShardDamaged, "another sha")
    with pytest.raises(expected[0], match=expected[1]):
        Run.resume(begun.path)


@pytest.mark.parametrize("key", ["rows_per_shard", "chunks"])
def test_manifest_of_another_mapping_is_refused(begun, key):
    file = begun.corpus().folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["splits"]["train"][key] -= 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="another corpus"):
        Run.resume(begun.path)


def test_another_validation_set_is_refused(begun):
    """Also of a run from before the digest of the whole corpus."""
    digest = begun.corpus().digest
    record = json.loads(begun.record_file.read_text())
    begun.record_file.write_text(json.dumps(record | {"corpus_digest": digest}))
    store = json.loads((begun.values_folder / "store.json").read_text())
    (begun.values_folder / "store.json").write_text(json.dumps(store | {"corpus_digest": digest}))
    change_tokens(begun, "val", in_manifest=True)
    with pytest.raises(RunFolderError, match="began with other documents behind the targets"):
        Run.resume(begun.path)


def test_evaluation_on_other_chunks_is_refused(begun):
    record = json.loads(begun.record_file.read_text())
    begun.record_file.write_text(json.dumps(record | {"evaluation": "0" * 64}))
    with pytest.raises(RunFolderError, match="began with other chunks to evaluate on"):
        Run.resume(begun.path)


def test_run_from_before_the_digests_is_resumed(begun):
    record = json.loads(begun.record_file.read_text())
    del record["targets"], record["evaluation"]
    begun.record_file.write_text(json.dumps(record))
    run = Run.resume(begun.path)
    assert run.step == 1
    run.train().close()


@pytest.mark.parametrize("torn", ["middle", "last"])
def test_torn_line_of_a_log_is_left_out_and_told(begun, torn, capsys):
    written = begun.log_file.read_text().splitlines(keepends=True)
    place = 1 if torn == "middle" else len(written) - 1
    written[place] = written[place][:20] + ("\n" if torn == "middle" else "")
    begun.log_file.write_text("".join(written))
    if torn == "middle":
        with pytest.raises(ConfigError, match=r"log\.jsonl: line 2 is torn"):
            begun.log()
    else:
        assert len(begun.log()) == len(written) - 1
    Run.resume(begun.path).train().close()
    assert f"torn and left out: line {place + 1}" in capsys.readouterr().err
    rows = [(row["iter"], "val/loss" in row) for row in RunFolder(begun.path).log()]
    assert len(rows) == len(set(rows))
    assert rows[-1][0] == 2


def test_log_of_a_stopped_run_has_the_keys_of_a_whole_one(tmp_path, monkeypatch):
    write_documents(tmp_path / "raw")
    changes = {"log__every": 1, "train__steps": 4, "train__checkpoint_every": 2}
    whole = Run.start(config(tmp_path, "whole", **changes))
    whole.train().close()
    run = Run.start(config(tmp_path, "stopped", **changes))
    in_step(monkeypatch, run, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run.train()
    monkeypatch.undo()
    Run.resume(run.folder).train().close()
    keys = [
        [(row["iter"], sorted(row)) for row in lines(folder)]
        for folder in (whole.folder, run.folder)
    ]
    assert keys[0] == keys[1]
