"""A run has one owner: another process that starts or resumes it is told who, and ends with 1."""

import json
import subprocess
import sys

import pytest

from inrun.files import write_json
from inrun.train import Run, RunFolderError
from tests.support.other_process import ROOT, owned_elsewhere
from tests.support.train_example import config, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("owned")
    write_documents(root / "raw")
    return root


@pytest.fixture(scope="module")
def folder(root):
    run = Run.start(config(root, "run", train__steps=2, train__checkpoint_every=1))
    run.train().close()
    return run.folder


_RESUMES = """
import sys
from experiments.frame import reported
from inrun.train import Run
with reported():
    Run.resume(sys.argv[1])
"""


def test_second_process_is_told_who_trains_and_ends_with_1(folder):
    before = sorted(path.name for path in folder.rglob("*") if not path.name.startswith("."))
    with owned_elsewhere(folder) as other:
        done = subprocess.run(
            [sys.executable, "-c", _RESUMES, str(folder)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"RunFolderError: {folder} is held by process {other.pid} on host" in done.stderr
        assert "Traceback" not in done.stderr
    after = sorted(path.name for path in folder.rglob("*") if not path.name.startswith("."))
    assert after == before


def test_run_of_a_killed_process_is_taken_over_and_let_go(folder):
    with owned_elsewhere(folder):
        pass
    assert (folder / ".owner.json").exists()
    Run.resume(folder).train().close()
    assert not list(folder.rglob(".lock"))
    assert not list(folder.rglob(".owner.json"))


def test_run_that_could_not_be_opened_is_let_go(folder):
    record = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", record | {"corpus_digest": "0" * 64})
    with pytest.raises(RunFolderError, match="began with another corpus"):
        Run.resume(folder)
    write_json(folder / "run.json", record)
    with owned_elsewhere(folder):
        pass


def test_two_starts_of_one_name_make_one_run(root):
    with (
        owned_elsewhere(root / "runs" / "twice") as other,
        pytest.raises(RunFolderError, match=f"held by process {other.pid}"),
    ):
        Run.start(config(root, "twice"))


def test_folder_that_a_killed_start_has_left_is_taken_over(root):
    place = root / "runs" / "left"
    with owned_elsewhere(place):
        (place / "chunks.parquet").write_bytes(b"half")
    Run.start(config(root, "left", train__steps=1)).close()
    assert json.loads((place / "run.json").read_text())["config"]["name"] == "left"


def test_folder_with_a_file_of_ones_own_is_not_taken_over(root):
    place = root / "runs" / "mine"
    place.mkdir(parents=True)
    (place / "chunks.parquet").write_bytes(b"a list of chunks")
    with pytest.raises(RunFolderError, match="exists already"):
        Run.start(config(root, "mine"))
