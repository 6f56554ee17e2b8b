"""Where a step's time goes, with and without values, by kind of operation.

python -m experiments profile                                      small models in float32
python -m experiments profile sizes=[gpt2-512] precisions=[bf16]
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from experiments.frame import command
from experiments.tables import grid
from experiments.throughput.bench import Bench
from experiments.throughput.cases import CASES
from inrun.config import build, require
from inrun.files import write_text

#: operations by what they do; the first whose part of the name is found
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn"),
    "attention": ("scaled_dot_product", "flash"),
    "softmax, loss": ("softmax", "amax", "gather", "scatter", "log", "exp"),
    "dots": ("aten::mv", "aten::dot"),
    "optimizer": ("Optimizer", "_fused_adam"),
    "norms, activations": ("layer_norm", "gelu"),
    "copies, allocation": ("copy_", "fill_", "zero_", "empty", "cat", "index", "clone", "_to_copy"),
    "elementwise": ("mul", "add", "sub", "div", "sqrt", "where", "sum", "norm", "lerp", "neg"),
}


def kind_of(name: str) -> str:
    """The kind of an operation, `other` where none is known."""
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def milliseconds(size: str, precision: str, name: str) -> dict[str, float]:
    """Self time on the CPU by kind of operation, of one step after a warm-up."""
    step = Bench(size, precision).step(name)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    totals: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        totals[kind_of(event.key)] += event.self_cpu_time_total / 1000
    return totals


@dataclass(frozen=True)
class ProfileConfig:
    """What is profiled."""

    sizes: tuple[str, ...]
    """of `experiments.throughput.bench.SIZES`"""
    precisions: tuple[str, ...]
    """fp32, bf16"""
    cases: tuple[str, ...]
    """names of `experiments.throughput.cases`"""
    runs: str = "runs/profile"
    """where profile.md is written"""

    def __post_init__(self):
        unknown = [case for case in self.cases if case not in CASES]
        require("profile", (not unknown, f"no cases {unknown}; known are {', '.join(CASES)}"))


@command("profile", ProfileConfig)
def profiled(given: dict[str, Any], console: Console) -> None:
    """Print the tables, and leave them in `runs`."""
    settings = build(ProfileConfig, given)
    lines = []
    for size in settings.sizes:
        for precision in settings.precisions:
            times = {name: milliseconds(size, precision, name) for name in settings.cases}
            rows = [
                [kind, *(f"{t.get(kind, 0):.0f}" for t in times.values())]
                for kind in [*KINDS, "other"]
            ]
            rows.append(["all", *(f"{sum(t.values()):.0f}" for t in times.values())])
            lines += [f"\n{size} {precision}, ms of self time\n", *grid(["kind", *times], rows)]
    text = "\n".join(lines)
    print(text)
    Path(settings.runs).mkdir(parents=True, exist_ok=True)
    write_text(Path(settings.runs, "profile.md"), text + "\n")
