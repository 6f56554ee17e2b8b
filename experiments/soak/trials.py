"""What happens to the small run: stops, flipped bits, two owners, no room.

A trial holds if the run ends with the numbers of the run that was left alone, or with a refusal by
name and status 1, without a traceback.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments.soak.child import train
from experiments.soak.small import EVERY, STEPS, content, copy, settings, write_documents
from inrun.train import RunFolder

STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
MOST_STOPS = 6
#: what is tried, by the name of the trial
TRIALS = (
    "stopped",
    "flipped_checkpoint",
    "flipped_corpus",
    "flipped_values",
    "two_owners",
    "no_room",
)
PATIENCE_S = 300.0


class Fault(Exception):
    """A trial that does not hold: what is wrong."""


@dataclass
class Soak:
    """The run that is left alone, one that stopped half way, and chance.

    Args:
        folder: where trials lie; those that hold are removed.
        rng: what happens when, to what.
    """

    folder: Path
    rng: random.Random
    stops: int = 0
    "Processes that were stopped."
    reference: dict[str, Any] = field(default_factory=dict)
    "What the run that was left alone leaves."

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.soak.child"])
        for name in ("alone", "half"):
            write_documents(self.folder / name / "raw")
        self._whole(self.folder / "alone")
        self.reference = content(self.folder / "alone" / "runs" / "run")
        process = self._started(self.folder / "half")
        files = RunFolder(self.folder / "half" / "runs" / "run")
        while not files.checkpoint(STEPS // 2 // EVERY * EVERY).is_dir() and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()

    # -- the trials: how each ended

    def stopped(self, root: Path) -> str:
        """Stopped again and again, at random moments, by random signals."""
        write_documents(root / "raw")
        for _ in range(self.rng.randint(1, MOST_STOPS)):
            process = self._started(root)
            self._wait_for(self.rng.randrange(STEPS), RunFolder(root / "runs" / "run"), process)
            if process.is_alive():
                self._stop(process, self.rng.choice(STOPS))
            elif process.exitcode:
                raise Fault(f"status {process.exitcode}: {_told(root)}")
        self._whole(root)
        return self._same(root)

    def flipped_checkpoint(self, root: Path) -> str:
        """A bit of the newest checkpoint."""
        return self._flipped(root, lambda files: [*files.checkpoints()[-1].iterdir()])

    def flipped_corpus(self, root: Path) -> str:
        """A bit of the corpus: tokens, chunk tables, manifest, tokenizer."""
        return self._flipped(root, lambda files: [*files.corpus_folder().rglob("*")])

    def flipped_values(self, root: Path) -> str:
        """A bit of the value store: parts, lists, description."""
        return self._flipped(root, lambda files: [*files.values_folder.rglob("*")])

    def two_owners(self, root: Path) -> str:
        """Two processes that go on with one run at once."""
        copy(self.folder / "half", root)
        both = [self._started(root, f"told-{k}") for k in range(2)]
        for process in both:
            process.join(PATIENCE_S)
        codes = sorted(process.exitcode or 0 for process in both)
        told = [_told(root, f"told-{k}") for k in range(2)]
        if codes not in ([0, 0], [0, 1]) or (codes[1] and not any("is held by" in t for t in told)):
            raise Fault(f"status {codes}: {told}")
        self._same(root)
        return "one after the other" if codes == [0, 0] else "one trained, one was told"

    def no_room(self, root: Path) -> str:
        """A file may not grow past a random size; then it may."""
        copy(self.folder / "half", root)
        process = self._started(root, largest_file=self.rng.randrange(500, 400_000))
        process.join(PATIENCE_S)
        if process.exitcode:
            self._refused(process, root)
        self._whole(root)
        self._same(root)
        return "told, then to the end" if process.exitcode else "there was room"

    # -- their parts

    def _flipped(self, root: Path, among: Callable[[RunFolder], list[Path]]) -> str:
        copy(self.folder / "half", root)
        files = RunFolder(root / "runs" / "run")
        file = self.rng.choice([f for f in among(files) if f.is_file() and f.stat().st_size])
        changed = bytearray(file.read_bytes())
        changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
        file.write_bytes(changed)
        process = self._started(root)
        process.join(PATIENCE_S)
        try:
            if process.exitcode:
                return self._refused(process, root)
            self._same(root)
        except Fault as fault:
            raise Fault(f"{file.name}: {fault}") from fault
        return "the one before was used" if "set aside" in _told(root) else "same numbers"

    def _wait_for(self, lines: int, files: RunFolder, process: BaseProcess) -> None:
        """Until the log has so many lines more or less than a moment ago, and some milliseconds."""
        began = self._lines(files)
        while process.is_alive() and abs(self._lines(files) - began) < lines:
            time.sleep(0.005)
        process.join(self.rng.uniform(0.0, 0.1))

    @staticmethod
    def _lines(files: RunFolder) -> int:
        return files.log_file.read_bytes().count(b"\n") if files.log_file.exists() else 0

    def _started(self, root: Path, told: str = "told", largest_file: int = 0) -> BaseProcess:
        arguments = (settings(root), root / told, largest_file)
        process = self._context.Process(target=train, args=arguments)
        process.start()
        return process

    def _stop(self, process: BaseProcess, number: signal.Signals) -> None:
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(process.pid, number)
        process.join(PATIENCE_S)
        self.stops += 1
        if process.exitcode not in (0, -number, 128 + number):
            raise Fault(f"{number.name} ended it with status {process.exitcode}")

    def _whole(self, root: Path) -> None:
        process = self._started(root)
        process.join(PATIENCE_S)
        if process.exitcode != 0:
            raise Fault(f"status {process.exitcode}: {_told(root)}")

    def _same(self, root: Path) -> str:
        found = content(root / "runs" / "run")
        if other := [key for key, value in self.reference.items() if found[key] != value]:
            raise Fault(f"other {', '.join(other)}")
        return "same numbers"

    def _refused(self, process: BaseProcess, root: Path) -> str:
        told = _told(root)
        if process.exitcode != 1 or "Traceback" in told or not re.search(r"^\w+: ", told, re.M):
            raise Fault(f"status {process.exitcode}: {told}")
        return "refused by name"


def run_trial(soak: Soak, name: str, number: int) -> tuple[str, str]:
    """How the trial ended, and what is wrong with it ("" if it holds)."""
    root = soak.folder / f"{name}-{number}"
    shutil.rmtree(root, ignore_errors=True)
    try:
        ended = getattr(soak, name)(root)
    except Exception as fault:  # whatever it is, it is the trial's
        return "fault", f"{type(fault).__name__}: {fault}"
    shutil.rmtree(root)
    return ended, ""


def _told(root: Path, name: str = "told") -> str:
    file = root / name
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
