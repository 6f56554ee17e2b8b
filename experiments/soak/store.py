"""A large value store: what writing, checking and asking it takes."""

import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from inrun.store import ValueStore, ValueWriter

PER_STEP = 2048


def write(folder: Path, rows: int) -> None:
    """`rows` values of a tenth as many samples, 2048 a step, with a ledger that adds up."""
    rng, samples = np.random.default_rng(0), max(rows // 10, PER_STEP)
    with ValueWriter(folder, {"targets": ["val"], "methods": ["path"]}) as writer:
        domains = pa.array(["a", "b", "c", "d"]).take(pa.array(np.arange(samples) % 4))
        writer.samples(pa.table({"sample_id": np.arange(samples), "domain": domains}))
        steps = -(-rows // PER_STEP)
        for step in range(steps):
            first = step * PER_STEP % (samples - PER_STEP + 1)
            values = rng.normal(size=PER_STEP).astype(np.float32)
            writer.terms(step, np.arange(first, first + PER_STEP), "val", {"path": values})
            total = float(values.astype(np.float64).sum())
            losses = {"loss_before": float(steps - step), "loss_after": float(steps - step - 1)}
            drop = {**losses, "drop": 1.0, "drift": 0.0}
            about = {"step": step, "target": "val", "method": "path"}
            writer.ledger({**about, **drop, "values": total, "residual": 1.0 - total})
            unknown = dict.fromkeys(("loss", "seconds", "tokens"))
            plain = {"step": step, "lr": 0.1, "clip": 1.0, "samples": PER_STEP}
            writer.steps({**plain, **unknown})


def _ask(what: Callable[[ValueStore], object]) -> Callable[[Path, int], None]:
    def asked(folder: Path, rows: int) -> None:
        with ValueStore(folder) as store:
            what(store)

    return asked


WORK: dict[str, Callable[[Path, int], None]] = {
    "write": write,
    "verify": _ask(lambda store: store.verify()),
    "top": _ask(lambda store: store.top(20)),
    "by": _ask(lambda store: store.by("domain")),
    "over": _ask(lambda store: store.over(bins=50)),
    "means": _ask(lambda store: store.means()),
    "ledger": _ask(lambda store: store.ledger()),
}


def _measured(name: str, folder: Path, rows: int, answer: multiprocessing.Queue) -> None:
    began = time.monotonic()
    WORK[name](folder, rows)
    answer.put((time.monotonic() - began, _peak_gib()))


def _peak_gib() -> float:
    """Of this process alone: `getrusage` counts what it was forked from, where there is /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = status.read_text(encoding="utf-8")
    return int(text.partition("VmHWM:")[2].split()[0]) / 2**20


def figures(folder: Path, rows: int) -> list[dict]:
    """A row for each piece of work, each in a process of its own: seconds, peak memory in GiB."""
    shutil.rmtree(folder, ignore_errors=True)
    context, found = multiprocessing.get_context("spawn"), []
    for name in WORK:
        answer = context.Queue()
        process = context.Process(target=_measured, args=(name, folder, rows, answer))
        process.start()
        seconds, peak = answer.get()
        process.join()
        found.append({"rows": rows, "work": name, "seconds": seconds, "peak_gib": peak})
    shutil.rmtree(folder)
    return found
