"""One small corpus and one small run for all tests of experiments, made once, by one worker."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.frame import commands, run
from tests.support.experiment_example import small
from tests.support.train_example import write_documents

TARGETS = "[{name: law, domains: [FreeLaw], chunks: 3}, {name: code, domains: [Github], chunks: 3}]"


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """A folder of all workers: documents in raw/, in data/ the corpora that are made of them."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "experiments"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "raw").is_dir():
            write_documents(root / "beside")
            (root / "data").mkdir()
            (root / "beside").rename(root / "raw")
    return root


@pytest.fixture(scope="session")
def small_run(shared) -> Path:
    """A finished run of the demo: two targets, noise, its report, and what it printed."""
    folder = shared / "runs" / "demo"
    with FileLock(shared / "lock"):
        if not (folder / "printed.txt").is_file():
            commands()
            printed = io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
                patch.setenv("COLUMNS", "200")
                run("demo", [*small(shared, "demo"), f"attribution.targets={TARGETS}"])
            (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def typed() -> Callable[..., None]:
    """A command in this process, its committed results beside its runs if a folder is given."""
    commands()

    def call(name: str, arguments: Sequence[str], results: Path | None = None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if results is not None:
                patch.setattr("experiments.artifacts.RESULTS", results)
            run(name, arguments)

    return call
