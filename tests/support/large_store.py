"""A store of many rows, and what its questions cost: `python -m tests.support.large_store FOLDER
1e8`. No test uses it; the numbers are in docs/performance.md.

It takes 7 bytes a row on disk and deletes the folder in the end.
"""

import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.store import ValueStore, ValueWriter

RUN = {"targets": ["val"], "methods": ["path"], "attribution": {"every": 1}}
QUESTIONS: dict[str, Callable[[ValueStore], Any]] = {
    "checksums, count": lambda store: store.sql("SELECT count(*) AS n FROM terms"),
    "ledger": ValueStore.ledger,
    "top(20)": ValueStore.top,
    "by(domain)": lambda store: store.by("domain"),
    "over(50, domain)": lambda store: store.over(by="domain"),
    "means()": ValueStore.means,
    "means(unit=step)": lambda store: store.means(unit="step"),
    "verify()": ValueStore.verify,
}


def write(path: Path, rows: int, a_step: int, samples: int) -> None:
    """A store of so many rows, whose tables agree; ids are drawn with repetition, seed 0."""
    rng = np.random.default_rng(0)
    domains = np.array(["a", "b", "c", "d", "e"])[np.arange(samples) % 5]
    with ValueWriter(path, RUN) as writer:
        writer.samples(pa.table({"sample_id": np.arange(samples), "domain": domains}))
        for step in range(rows // a_step):
            values = 1e-3 * rng.standard_normal(a_step).astype(np.float32)
            writer.terms(step, rng.integers(0, samples, a_step), "val", {"path": values})
            measured = {"clip": 1.0, "loss": 2.0, "seconds": 0.1, "tokens": 10, "samples": a_step}
            writer.steps({"step": step, "lr": 0.1, **measured})
            writer.ledger(_ledger_row(step, float(values.sum(dtype=np.float64))))


def _ledger_row(step: int, values: float) -> dict[str, float | int | str | None]:
    before, after, drift = 20 - step * 1e-5, 20 - (step + 1) * 1e-5, 0.01
    drop = before - after
    kept = {"loss_before": before, "loss_after": after, "drop": drop, "drift": drift}
    residual = drop - drift - values
    return {"step": step, "target": "val", "method": "path", **kept, "values": values,
            "residual": residual}  # fmt: skip


def cost(what: str, act: Callable[[], Any]) -> None:
    """Prints seconds, seconds of processors (which other work on the machine hardly changes), and
    the most memory of the process so far.
    """
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    act()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss / 2**20
    sys.stdout.write(f"{what:20} {wall:7.1f} s {busy:7.1f} CPU s {peak:6.2f} GiB\n")
    sys.stdout.flush()


def main(path: str, rows: str, a_step: str = "2048", samples: str = "1e7") -> None:
    """Write the store, ask, delete it."""
    folder = Path(path)
    counts = [int(float(number)) for number in (rows, a_step, samples)]
    try:
        cost("write", lambda: write(folder, *counts))
        with ValueStore(folder) as store:
            for what, ask in QUESTIONS.items():
                cost(what, lambda ask=ask: ask(store))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
