"""What values cost: steps with and without them, interleaved, as ratios.

Rounds alternate the order of the cases, and a ratio is taken within a round, against `regular`:
plain training on the same tokens (training and validation sequences together) with the same head.
Peak memory is that of a process of its own, which runs one case alone (VmHWM). A killed bench goes
on with the plans that are not measured yet. Nothing else should run on the machine.

  python -m experiments bench                       small in float32, GPT-2 124M in bfloat16
  python -m experiments bench scale=full            batches, lengths, targets: about 20 minutes
  python -m experiments bench 'plans=[{size: small, precision: fp32, rounds: 5, cases: [path]}]'
"""

import datetime
import functools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from experiments.artifacts import Outputs
from experiments.frame import StudyConfig, study
from experiments.throughput.bench import SIZES, Bench
from experiments.throughput.cases import CASES
from experiments.throughput.report import report, table
from inrun.config import ConfigError
from inrun.files import remember


@dataclass(frozen=True)
class Plan:
    """Cases that are timed together."""

    size: str
    """of `experiments.throughput.bench.SIZES`"""
    precision: str
    """fp32 or bf16"""
    rounds: int
    """how often every case takes a step"""
    cases: tuple[str, ...]
    """names of `experiments.throughput.cases`"""
    memory: tuple[str, ...] = ()
    """those whose peak memory is taken as well"""

    def __post_init__(self):
        unknown = [c for c in (*self.cases, *self.memory) if c not in CASES]
        if unknown or self.size not in SIZES:
            raise ConfigError(
                f"plans: unknown {', '.join(unknown) or self.size}; cases: "
                f"{', '.join(CASES)}; sizes: {', '.join(SIZES)}"
            )
        if self.precision not in ("fp32", "bf16") or self.rounds < 1:
            raise ConfigError(
                f"plans: precision is fp32 or bf16, rounds 1 or more; got {self.precision}, "
                f"{self.rounds}"
            )

    @property
    def key(self) -> str:
        """What no two plans of a study may share."""
        return f"{self.size} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class BenchConfig(StudyConfig):
    """The study."""

    plans: tuple[Plan, ...]
    """what is timed together; each with a size and precision of its own"""
    table: str = "bench"
    """name of the table and of the committed CSV"""
    runs: str = "runs/bench"

    def __post_init__(self):
        keys = [plan.key for plan in self.plans]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError(
                "plans: one or more, each with a size and precision of its own; got "
                f"{', '.join(keys)}"
            )


def times_of(plan: Plan) -> dict[str, list[float]]:
    """Seconds of each case's step, by round; the order is reversed every second round."""
    bench = Bench(plan.size, plan.precision)
    cases = ["regular", *(c for c in plan.cases if c != "regular")]
    steps = {name: bench.step(name) for name in cases}
    for name in cases:
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(plan.rounds):
        for name in cases if number % 2 == 0 else cases[::-1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
        print(f"{plan.key}: round {number + 1} of {plan.rounds}", file=sys.stderr)
    return times


def peak_memory(plan: Plan, name: str) -> int | None:
    """MiB at the peak of a process of its own that takes two steps of one case; None where the
    system does not tell.
    """
    if not Path("/proc/self/status").exists():
        return None
    # forked from a process that has only imported: seconds faster than a new interpreter
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.throughput.cases"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_own_peak, plan.size, plan.precision, name).result()


def _own_peak(size: str, precision: str, name: str) -> int:
    step = Bench(size, precision).step(name)
    step(), step()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def peaks(plan: Plan) -> dict[str, int | None]:
    """Peak memory of the cases for which the plan asks."""
    return {name: peak_memory(plan, name) for name in plan.memory}


def rows_of(plan: Plan, times: dict[str, list[float]], memory: dict[str, int | None]) -> list[dict]:
    """One row per case: median seconds, throughput, ratios (min, median, max over rounds) to
    `regular`, and to training on the training batch alone.
    """
    facts = SIZES[plan.size]

    def ratios(reference: str, seconds: list[float]) -> list[float]:
        return sorted(r / s for r, s in zip(times.get(reference, []), seconds))

    def middle_of(found: list[float]) -> float | None:
        return round(statistics.median(found), 3) if found else None

    rows = []
    for name, seconds in times.items():
        same, alone, stock = (
            ratios(r, seconds) for r in ("regular", "regular_train_only", "stock")
        )
        middle = statistics.median(seconds)
        rows.append(
            {
                "size": plan.size,
                "precision": plan.precision,
                "samples": f"{facts.n}+{facts.m}",
                "tokens": facts.t,
                "width": facts.model.get("d_model", 768),
                "case": name,
                "seconds": round(middle, 4),
                "samples_per_second": round(facts.n / middle, 3),
                "tokens_per_second": round(facts.n * facts.t / middle, 1),
                "ratio_min": round(same[0], 3),
                "ratio": middle_of(same),
                "ratio_max": round(same[-1], 3),
                "ratio_to_train_only": middle_of(alone),
                "ratio_to_stock": middle_of(stock),
                "peak_mib": memory.get(name),
                "rounds": len(seconds),
                "threads": torch.get_num_threads(),
                "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} "
                f"{os.cpu_count()} cores",
                "torch": torch.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    return rows


@study("bench", BenchConfig, report)
@study(
    "throughput",
    BenchConfig,
    report,
    doc="""The paper's table 1 over model widths and lengths, with peak memory.

The plans follow section 5.1; the measuring is that of `python -m experiments bench`. Nothing else
should run on the machine.

  python -m experiments throughput                  small models, minutes on 2 idle cores
  python -m experiments throughput scale=paper      GPT-2 124M at length 1024""",
)
def measure(settings: BenchConfig, out: Outputs, console: Console) -> None:
    """The rows of all plans; what an earlier process has measured is read."""
    rows: list[dict] = []
    for plan in settings.plans:
        place = out.folder / f"{plan.size}-{plan.precision}"
        memory = remember(place.with_suffix(".memory.json"), functools.partial(peaks, plan))
        timed = functools.partial(_timed_rows, plan, memory)
        found = remember(place.with_suffix(".json"), timed)
        console.print(table(found), highlight=False, markup=False, soft_wrap=True)
        rows += found
    out.table(settings.table, rows)


def _timed_rows(plan: Plan, memory: dict[str, int | None]) -> list[dict]:
    return rows_of(plan, times_of(plan), memory)
