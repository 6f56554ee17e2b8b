"""Where a step's time goes, with and without values: one table of operations per case (`make
profile`).

python -m experiments.throughput.profile                                        first order and path beside regular training, small model, float32
python -m experiments.throughput.profile sizes=[gpt2-512] precisions=[bf16]
"""

from collections import defaultdict
from pathlib import Path

from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from experiments.frame import command, plain
from experiments.throughput.cases import Bench

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


def main(config: DictConfig) -> None:
    options = plain(config)
    lines = []
    for size in options["sizes"]:
        for precision in options["precisions"]:
            times = {name: milliseconds(size, precision, name) for name in options["cases"]}
            lines += [
                f"\n{size} {precision}, ms of self time\n",
                "| kind | " + " | ".join(times) + " |",
                "|---|" + "---|" * len(times),
            ]
            for kind in [*KINDS, "other"]:
                lines.append(
                    f"| {kind} | "
                    + " | ".join(f"{t.get(kind, 0):.0f}" for t in times.values())
                    + " |"
                )
            lines.append(
                "| all | " + " | ".join(f"{sum(t.values()):.0f}" for t in times.values()) + " |"
            )
    text = "\n".join(lines)
    print(text)
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.md").write_text(text + "\n")


if __name__ == "__main__":
    command("profile", main)
