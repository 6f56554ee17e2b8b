"""SIGKILL before each kind of operation on files: sync, rename, append, cut, delete."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from inrun.store import ValueStore
from tests.store.test_resume import assert_same, train
from tests.support.other_process import ROOT
from tests.support.store_example import content

_CHILD = """
import json, os, signal, sys
from pathlib import Path
from tests.store.test_resume import train

path, saved, kill_at, kind = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
count = 0

def deadly(name, operation):
    def run(*args, **options):
        global count
        count += name == kind or kind == "any"
        if count == kill_at:
            if name == "write":  # half of a line
                operation(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*args, **options)
    return run

class Saved(dict):  # what a checkpoint is: durable as soon as it is said
    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        saved.write_text(json.dumps(self))

for name in ("fsync", "replace", "write", "ftruncate", "unlink"):
    setattr(os, name, deadly(name, getattr(os, name)))
train(path, Saved(json.loads(saved.read_text())))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("kind", "most"), [("fsync", 12), ("replace", 12), ("write", 4), ("any", 60)]
)
def test_store_survives_a_kill_before_any_operation(tmp_path, kind, most):
    whole, path, saved = tmp_path / "whole", tmp_path / "v", tmp_path / "checkpoint.json"
    train(whole, {"step": 0})
    saved.write_text('{"step": 0}')
    kills = 0
    for kill_at in np.random.default_rng(len(kind)).integers(1, most, 5):
        command = [sys.executable, "-c", _CHILD, str(path), str(saved), str(kill_at), kind]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        if (path / "store.json").exists():
            with ValueStore(path) as store:
                store.verify()
    assert kills >= 2
    train(path, json.loads(saved.read_text()))
    with ValueStore(whole) as store:
        assert_same(path, content(store))
