"""A value store and a trained run, for the command."""

import subprocess
import sys

import pytest
import yaml

from inrun.store import ValueWriter
from tests.support.store_example import RUN, SAMPLES, STEPS, write_step
from tests.support.train_example import settings, write_documents

#: parts of a run that the command's options do not say
PARTS = ("model", "data", "optim", "train", "attribution")


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory):
    """Two targets, two methods, twenty steps; no run around it."""
    folder = tmp_path_factory.mktemp("asked") / "values"
    with ValueWriter(folder, RUN) as writer:
        writer.samples(SAMPLES)
        for step in range(STEPS):
            write_step(writer, step)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(what `inrun train` said, the run's folder), a run on documents of the tests."""
    root = tmp_path_factory.mktemp("commanded")
    documents = write_documents(root / "raw")
    config = root / "small.yaml"
    small = settings(root, "small")
    config.write_text(yaml.safe_dump({part: small[part] for part in PARTS}), encoding="utf-8")
    done = inrun(
        *("train", documents, "--config", config, "--steps", 4, "--name", "small"),
        *("--runs", root / "runs", "--data-root", root / "data", "--set", "seed=3"),
    )
    return done, root / "runs" / "small"


def inrun(*arguments):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "inrun", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
