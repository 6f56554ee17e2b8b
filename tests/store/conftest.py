"""The store that the tests of reading ask (two ranks, twenty steps), and one to be filled."""

import pytest

from inrun.store import ValueStore, ValueWriter
from tests.support.store_example import (
    RANKS,
    RUN,
    SAMPLES,
    STEPS,
    write_step,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    # Folder names as Hydra makes them: nothing in them may be taken for a wildcard or a partition.
    path = tmp_path_factory.mktemp("it's") / "lr=0.1" / "seed=[1]*?" / "values"
    writers = [ValueWriter(path, RUN, rank, 4, RANKS) for rank in range(RANKS)]
    writers[0].samples(SAMPLES)
    for step in range(STEPS):
        for writer in writers:
            write_step(writer, step)
    for writer in writers:
        writer.close()
    return path


@pytest.fixture(scope="module")
def store(path):
    with ValueStore(path) as store:
        yield store


@pytest.fixture
def lone(tmp_path):
    """A store of one target and one method, to be filled by the test."""
    with ValueWriter(tmp_path / "lone", {"targets": ["val"], "methods": ["path"]}) as writer:
        yield writer
