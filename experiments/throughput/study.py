"""What values cost: steps with and without them, interleaved on the same machine, as ratios of
throughput. `make bench`, `make throughput`.

    python -m experiments.throughput.study                       the short form: a small model in float32 and GPT-2 124M in bfloat16
    python -m experiments.throughput.study scale=full            batches, lengths, targets, precisions, memory: about 20 minutes
    python -m experiments.throughput.study plans='[{size: small, precision: fp32, rounds: 5, cases: [first_order, path]}]'

Rounds alternate the order of the cases, and a ratio is taken within a round, against `regular`:
plain training on the same tokens (training and validation sequences together) with the same head.
Peak memory is that of a process of its own, which runs one case alone (VmHWM). A killed bench goes
on with the plans that are not measured yet.
"""

import datetime
import functools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console

from experiments.artifacts import Outputs, whole
from experiments.frame import command, plain
from experiments.study import measured_once
from experiments.throughput.cases import CASES, SIZES, Bench
from inrun.config import build
from inrun.train import ConfigError


@dataclass(frozen=True)
class Plan:
    """Cases that are timed together, in `rounds` rounds, on one size and precision ("fp32" or
    "bf16"). memory: those whose peak is taken as well.
    """

    size: str
    precision: str
    rounds: int
    cases: tuple[str, ...]
    memory: tuple[str, ...] = ()

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
        return f"{self.size} {self.precision}"


@dataclass(frozen=True)
class BenchConfig:
    """plans: see `Plan`. table: name of the table and of the results' CSV. record: also into
    experiments/results.
    """

    plans: tuple[Plan, ...]
    table: str = "bench"
    scale: str = ""
    runs: str = "runs/bench"
    name: str | None = None
    record: bool = False

    def __post_init__(self):
        keys = [plan.key for plan in self.plans]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError(
                "plans: one or more, each with a size and precision of its own; got "
                f"{', '.join(keys)}"
            )


def measure(plan: Plan) -> dict[str, list[float]]:
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

    def ratios(reference: str, seconds: list[float]) -> list[float] | None:
        return (
            sorted(r / s for r, s in zip(times[reference], seconds)) if reference in times else None
        )

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
                "ratio": round(statistics.median(same), 3),
                "ratio_max": round(same[-1], 3),
                "ratio_to_train_only": None
                if alone is None
                else round(statistics.median(alone), 3),
                "ratio_to_stock": None if stock is None else round(statistics.median(stock), 3),
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


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model, samples x tokens | precision | case | s / step | of regular, same tokens "
        "(min / median / max) | of regular, training batch alone | of stock | peak MiB |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for r in rows:
        alone, stock = (
            "" if r[key] is None else f"{r[key]:.2f}"
            for key in ("ratio_to_train_only", "ratio_to_stock")
        )
        lines.append(
            f"| {r['size']}, {r['samples']} x {r['tokens']} | {r['precision']} | {r['case']} "
            f"| {r['seconds']:.2f} | "
            f"{r['ratio_min']:.3f} / **{r['ratio']:.3f}** / {r['ratio_max']:.3f} | {alone} | "
            f"{stock} | {r['peak_mib'] or ''} |"
        )
    return "\n".join(lines)


#: what the README shows: label, size, precision, case
SHOWN = (
    ("first order", "first_order"),
    ("path", "path"),
    ("second order", "second_order"),
    ("stock PyTorch, no values", "stock"),
)


def short_table(rows: list[dict]) -> str:
    """The README's table: medians of throughput against regular training on the same tokens with
    the same fused head, by size and precision.
    """
    settings = list(
        dict.fromkeys((r["size"], r["precision"], r["samples"], r["tokens"]) for r in rows)
    )
    found = {(r["size"], r["precision"], r["case"]): r for r in rows}
    settings = [
        s for s in settings if (*s[:2], "first_order") in found and (*s[:2], "stock") in found
    ]
    head = [
        f"{size.split('-')[0]}, {precision}, {samples} x {tokens}"
        for size, precision, samples, tokens in settings
    ]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for label, name in SHOWN:
        cells = [found.get((*s[:2], name)) for s in settings]
        shown = ["-" if c is None else f"{float(c['ratio']):.2f}" for c in cells]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def figure(rows: list[dict]) -> Figure:
    """Ratios to regular training, a bar per case and setting, with the range over rounds."""
    settings = list(dict.fromkeys((r["size"], r["precision"]) for r in rows))
    names = [c for c in dict.fromkeys(r["case"] for r in rows) if c != "regular"]
    drawn = Figure(figsize=(2.5 + 0.9 * len(names), 4), layout="constrained")
    ax = drawn.subplots()
    width = 0.8 / len(settings)
    for at, (size, precision) in enumerate(settings):
        found = {r["case"]: r for r in rows if (r["size"], r["precision"]) == (size, precision)}
        xs = [x for x, name in enumerate(names) if name in found]
        values = [found[names[x]] for x in xs]
        errors = [
            [v["ratio"] - v["ratio_min"] for v in values],
            [v["ratio_max"] - v["ratio"] for v in values],
        ]
        heights = [v["ratio"] for v in values]
        places = [x + at * width for x in xs]
        ax.bar(
            places, heights, width, yerr=errors, label=f"{size} {precision}", error_kw={"lw": 0.8}
        )
    ax.axhline(1.0, color="black", lw=0.8)
    ax.set_xticks([x + 0.4 - width / 2 for x in range(len(names))], names, rotation=30, ha="right")
    ax.set_ylabel("throughput / regular training")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return drawn


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, from the file that an earlier call has left."""
    if not path.is_file():
        text = json.dumps(make(), indent=1)
        whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


def main(config: DictConfig) -> None:
    values = plain(config)
    settings = build(BenchConfig, values, "bench")
    out = Outputs.open(settings.runs, values, settings.name)
    console = Console(stderr=True)

    def measured() -> None:
        rows = measured_plans(settings, out.folder, console)
        out.table(settings.table, rows, table(rows))
        out.figure(settings.table, figure(rows))

    measured_once(out, measured, settings.record, console, settings.table)


def measured_plans(settings: BenchConfig, folder: Path, console: Console) -> list[dict]:
    """The rows of all plans; what an earlier process has measured is read."""
    rows: list[dict] = []
    for plan in settings.plans:
        place = folder / f"{plan.size}-{plan.precision}"
        memory = once(place.with_suffix(".memory.json"), functools.partial(peaks, plan))
        found = once(place.with_suffix(".json"), lambda: rows_of(plan, measure(plan), memory))  # noqa: B023
        console.print(table(found), highlight=False, markup=False, soft_wrap=True)
        rows += found
    return rows


if __name__ == "__main__":
    command("bench", main)
