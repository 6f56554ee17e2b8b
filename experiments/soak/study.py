"""What a run survives: stopped, spoilt, resumed at random; and a large store.

  make soak                              10 minutes, and a store of 1e8 values
  make soak SOAK_SECONDS=60 ARGS="rows=1e6"

Each trial takes a training run of seconds (GPT-2 of two layers, two methods, two targets) and
compares all that it leaves with the run that was left alone. A trial that does not hold ends the
command with an error; its folder stays.
"""

import itertools
import random
import time
from dataclasses import dataclass

from rich.console import Console

from experiments.artifacts import Outputs
from experiments.frame import StudyConfig, study
from experiments.soak.report import report
from experiments.soak.store import figures
from experiments.soak.trials import TRIALS, Soak, run_trial
from inrun.config import require


@dataclass(frozen=True, kw_only=True)
class SoakConfig(StudyConfig):
    """The study."""

    seconds: int = 600
    """for the trials, of which there is one of each kind at least; the store comes after them"""
    rows: float = 1e8
    """values in the store; 0: none"""
    seed: int = 0
    """what happens when, to what"""
    runs: str = "runs/soak"

    def __post_init__(self):
        require("soak", (self.seconds >= 1 and self.rows >= 0, "seconds, rows: a positive number"))


@study("soak", SoakConfig, report, recorded={"soak": "soak", "soak-store": "store"})
def measure(settings: SoakConfig, out: Outputs, console: Console) -> None:
    """One row for each kind of trial; one for each question to the store.

    Raises AssertionError if a trial does not hold.
    """
    began, soak = time.monotonic(), Soak(out.folder / "trials", random.Random(settings.seed))
    ends: dict[str, list[str]] = {name: [] for name in TRIALS}
    faults = []
    for tried, name in enumerate(itertools.cycle(TRIALS)):
        if tried >= len(TRIALS) and time.monotonic() - began > settings.seconds:
            break
        ended, fault = run_trial(soak, name, len(ends[name]))
        ends[name].append(ended)
        console.print(f"{name}: {ended} ({soak.stops} stops so far)", highlight=False)
        if fault:
            faults.append(f"{name}-{len(ends[name]) - 1}: {fault}")
            console.print(faults[-1], style="red", markup=False, soft_wrap=True)
    out.table("soak", [_row(name, found, soak.stops) for name, found in ends.items()])
    rows = figures(out.folder / "store", int(settings.rows)) if settings.rows else []
    out.table("store", rows or [{"rows": 0, "work": "none", "seconds": 0.0, "peak_gib": 0.0}])
    assert not faults, "\n".join(faults)


def _row(name: str, ends: list[str], stops: int) -> dict:
    counts = {end: ends.count(end) for end in sorted(set(ends))}
    return {
        "trial": name.replace("_", " "),
        "trials": len(ends),
        "stops": stops if name == "stopped" else 0,
        "held": len(ends) - counts.get("fault", 0),
        "ended": "; ".join(f"{end}: {count}" for end, count in counts.items()),
    }
