"""What values cost: steps with and without them, interleaved on the same machine, as ratios of throughput.

    python -m experiments.bench                       the short form: a small model in float32 and bfloat16, GPT-2 124M in bfloat16
    python -m experiments.bench sizes=[gpt2-512] precisions=[fp32] rounds=5 cases=[regular,first_order]

Every case is a whole training step with fused AdamW. Rounds alternate the order of the cases, and a ratio is taken within a round, against `regular`: plain training on the same tokens
(training and validation sequences together) with the same head. Peak memory is that of a fresh process that runs one case alone (VmHWM).
"""

import csv
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from experiments.command import command, plain
from inrun import Attributor, Method
from inrun.ghost import Tape, Watch
from inrun.models import build
from inrun.rules import Outer


@dataclass(frozen=True)
class Size:
    """A model and a batch: n training and m validation sequences of t tokens."""

    model: dict
    n: int
    m: int
    t: int


SMALL = {"name": "gpt2", "preset": "tiny", "n_layer": 4, "d_model": 256, "n_head": 4, "vocab_size": 50304}
SIZES = {
    "small": Size({**SMALL, "block_size": 256}, n=8, m=2, t=256),
    "small-16+1": Size({**SMALL, "block_size": 256}, n=16, m=1, t=256),
    "small-512": Size({**SMALL, "block_size": 512}, n=8, m=2, t=512),
    "wide": Size({**SMALL, "d_model": 512, "n_head": 8, "block_size": 256}, n=8, m=2, t=256),
    "gpt2-512": Size({"name": "gpt2", "preset": "124m", "block_size": 512}, n=4, m=1, t=512),
    "gpt2-512-16+1": Size({"name": "gpt2", "preset": "124m", "block_size": 512}, n=16, m=1, t=512),
    "gpt2-1024": Size({"name": "gpt2", "preset": "124m", "block_size": 1024}, n=4, m=1, t=1024),
}

CASES: dict[str, Callable[["Bench"], Callable[[], None]]] = {}


def case(name: str):
    """Decorator: `function(bench) -> step`, a closure that takes one training step."""

    def add(function):
        CASES[name] = function
        return function

    return add


class Bench:
    """One model, one optimizer, fixed batches of random tokens (arithmetic does not depend on the text)."""

    def __init__(self, size: Size, precision: str, targets: int = 1):
        torch.manual_seed(0)
        self.size, self.precision, self.k = size, precision, targets
        self.model = build(**size.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=True)
        vocab = self.model.config.vocab_size
        self.train, self.val = (torch.randint(0, vocab, (rows, size.t + 1)) for rows in (size.n, size.m))
        self.both = torch.cat([self.train, self.val])

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def loss(self, rows: Tensor, reduction_tokens: int | None = None) -> Tensor:
        with self.autocast():
            return self.model.loss(rows[:, :-1], rows[:, 1:]) / (reduction_tokens or rows[:, 1:].numel())

    def head(self, fused: bool) -> None:
        self.model.config = replace(self.model.config, fused_head=fused)

    def plain(self, rows: Tensor, fused: bool) -> Callable[[], None]:
        def step():
            self.head(fused)
            self.loss(rows).backward()
            self.finish()

        return step

    def valued(self, method, **options) -> Callable[[], None]:
        parts = self.val.chunk(self.k)
        targets = {f"val{i}": lambda part=part: self.loss(part) for i, part in enumerate(parts)}
        attr = Attributor(self.model, self.optimizer, targets, method, fused=True, ledger=0, check=0, **options)
        forward = (lambda: self.loss(self.train)) if options.get("replay") else None

        def step():
            self.head(True)
            with attr.batch(range(self.size.n), forward=forward):
                self.loss(self.train).backward()
            self.finish()

        return step

    def finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


@case("regular")
def _(b: Bench):
    return b.plain(b.both, fused=True)


@case("regular_train_only")
def _(b: Bench):
    return b.plain(b.train, fused=True)


@case("stock")
def _(b: Bench):
    return b.plain(b.both, fused=False)


@case("stock_train_only")
def _(b: Bench):
    return b.plain(b.train, fused=False)


@case("first_order")
def _(b: Bench):
    return b.valued("first_order")


@case("first_order_sgd_formula")
def _(b: Bench):
    return b.valued(Method("first_order", update="sgd"))


@case("second_order")
def _(b: Bench):
    return b.valued("second_order", memory_budget=1 << 40)


@case("second_order_replay")
def _(b: Bench):
    return b.valued("second_order", replay=True)


@case("path")
def _(b: Bench):
    return b.valued("path", memory_budget=1 << 40)


@case("path_tape")
def _(b: Bench):
    return b.valued("path", memory_budget=0)


@case("path_replay")
def _(b: Bench):
    return b.valued("path", replay=True)


@case("per_sample_loop")
def _(b: Bench):
    """One backward per training sample, dotted with the validation gradient."""

    def step():
        b.head(True)
        parameters = list(b.model.parameters())
        V = torch.autograd.grad(b.loss(b.val), parameters)
        for i in range(b.size.n):
            g = torch.autograd.grad(b.loss(b.train[i : i + 1], b.train[:, 1:].numel()), parameters)
            sum(torch.dot(x.flatten(), v.flatten()) for x, v in zip(g, V))
            for p, x in zip(parameters, g):
                p.grad = x if p.grad is None else p.grad.add_(x)
        b.finish()

    return step


@case("vmap")
def _(b: Bench):
    """torch.func.vmap(grad): all per-sample gradients at once."""

    def step():
        b.head(False)
        named = dict(b.model.named_parameters())
        V = torch.autograd.grad(b.loss(b.val), list(named.values()))

        def one(parameters, row):
            # the cache of casts does not survive vmap's levels
            with torch.autocast("cpu", torch.bfloat16, enabled=b.precision == "bf16", cache_enabled=False):
                logits = functional_call(b.model, parameters, (row[None, :-1],))
            return (
                torch.nn.functional.cross_entropy(logits[0].float(), row[1:], reduction="sum") / b.train[:, 1:].numel()
            )

        with sdpa_kernel(SDPBackend.MATH):
            per_sample = vmap(grad(one), (None, 0))({name: p.detach() for name, p in named.items()}, b.train)
        for (name, p), v in zip(named.items(), V):
            per_sample[name].flatten(1) @ v.flatten()
            p.grad = per_sample[name].sum(0)
        b.finish()

    return step


@case("pairwise_ghost")
def _(b: Bench):
    """The paper's ghost dot product: one backward of training and validation sequences together, token Grams of every pair. Linear layers and head only."""

    def step():
        b.head(False)
        n, rows = b.size.n, len(b.both)
        named = dict(b.model.named_parameters())
        tape = Tape(rows)
        with Watch(named, list(b.model.buffers()), tape):
            b.loss(b.both).backward()
        for _, factor in tape.entries:
            if isinstance(factor, Outer):
                kernels.pairwise_dots(factor.a[:n], factor.b[:n], factor.a[n:], factor.b[n:])
        b.finish()

    return step


def measure(size: str, precision: str, cases: list[str], rounds: int, targets: int) -> dict[str, list[float]]:
    """Seconds of each case's step, by round; the order is reversed every second round."""
    bench = Bench(SIZES[size], precision, targets)
    steps = {name: CASES[name](bench) for name in cases}
    for name in cases:
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in cases if number % 2 == 0 else cases[::-1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
        print(f"{size} {precision}: round {number + 1} of {rounds}", file=sys.stderr)
    return times


def peak_memory(size: str, precision: str, name: str, targets: int) -> float | None:
    """MiB at the peak of a fresh process that takes two steps of one case; None where the system does not tell."""
    if not Path("/proc/self/status").exists():
        return None
    code = (
        f"from experiments.bench import *; b = Bench(SIZES[{size!r}], {precision!r}, {targets}); s = CASES[{name!r}](b); s(); s();"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def rows_of(
    size: str, precision: str, targets: int, times: dict[str, list[float]], memory: dict[str, float | None]
) -> list[dict]:
    """One row per case: median seconds, throughput ratio to `regular` (min, median, max over rounds), peak memory."""
    facts = SIZES[size]
    out = []
    for name, seconds in times.items():
        ratios = sorted(r / s for r, s in zip(times["regular"], seconds))
        out.append(
            {
                "size": size,
                "precision": precision,
                "samples": f"{facts.n}+{facts.m}",
                "tokens": facts.t,
                "targets": targets,
                "case": name,
                "seconds": round(statistics.median(seconds), 4),
                "tokens_per_second": round(facts.n * facts.t / statistics.median(seconds), 1),
                "ratio_min": round(ratios[0], 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_max": round(ratios[-1], 3),
                "peak_mib": None if memory.get(name) is None else round(memory[name]),
                "rounds": len(seconds),
                "threads": torch.get_num_threads(),
                "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
                "torch": torch.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    return out


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model, samples | precision | case | seconds | ratio to regular (min / median / max) | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = f"{r['ratio_min']:.3f} / **{r['ratio']:.3f}** / {r['ratio_max']:.3f}"
        what = f"{r['size']} {r['samples']} x {r['tokens']}" + (f", {r['targets']} targets" if r["targets"] > 1 else "")
        lines.append(
            f"| {what} | {r['precision']} | {r['case']} | {r['seconds']:.3f} | {ratio} | {r['peak_mib'] or ''} |"
        )
    return "\n".join(lines)


def main(config: DictConfig) -> None:
    options = plain(config)
    unknown = [c for c in options["cases"] if c not in CASES] + [s for s in options["sizes"] if s not in SIZES]
    if unknown:
        raise SystemExit(f"unknown cases or sizes {unknown}; cases: {', '.join(CASES)}; sizes: {', '.join(SIZES)}")
    cases = ["regular", *(c for c in options["cases"] if c != "regular")]
    rows = []
    for size in options["sizes"]:
        for precision in options["precisions"]:
            heavy = size.startswith("gpt2")
            chosen = [c for c in cases if not heavy or c in options["heavy_cases"]]
            if precision == "bf16":  # torch's vmap(grad) fails under autocast on a CPU
                chosen = [c for c in chosen if c != "vmap"]
            times = measure(
                size, precision, chosen, options["heavy_rounds"] if heavy else options["rounds"], options["targets"]
            )
            memory = (
                {c: peak_memory(size, precision, c, options["targets"]) for c in chosen} if options["memory"] else {}
            )
            rows += rows_of(size, precision, options["targets"], times, memory)
            print(table(rows[-len(chosen) :]))
            write(rows, options)
    print(f"\n{Path(options['out']) / 'bench.csv'}, .md, .svg, .png")


def write(rows: list[dict], options: dict) -> None:
    """CSV, table, settings and figure of what is measured so far."""
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "bench.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "bench.md").write_text(table(rows) + "\n")
    (folder / "bench.json").write_text(json.dumps(options, indent=1) + "\n")
    figure(rows, folder / "bench")


def figure(rows: list[dict], path: Path) -> None:
    """Ratios to regular training, a bar per case and setting, with the range over rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys((r["size"], r["precision"]) for r in rows))
    names = [c for c in dict.fromkeys(r["case"] for r in rows) if c != "regular"]
    fig, ax = plt.subplots(figsize=(1.2 + 0.9 * len(names), 4))
    width = 0.8 / len(settings)
    for at, (size, precision) in enumerate(settings):
        found = {r["case"]: r for r in rows if (r["size"], r["precision"]) == (size, precision)}
        xs = [x for x, name in enumerate(names) if name in found]
        values = [found[names[x]] for x in xs]
        errors = [[v["ratio"] - v["ratio_min"] for v in values], [v["ratio_max"] - v["ratio"] for v in values]]
        ax.bar(
            [x + at * width for x in xs],
            [v["ratio"] for v in values],
            width,
            yerr=errors,
            label=f"{size} {precision}",
            error_kw={"lw": 0.8},
        )
    ax.axhline(1.0, color="black", lw=0.8)
    ax.set_xticks([x + 0.4 - width / 2 for x in range(len(names))], names, rotation=30, ha="right")
    ax.set_ylabel("throughput / regular training")
    ax.legend(fontsize=8)
    fig.tight_layout()
    for suffix in (".svg", ".png"):
        fig.savefig(path.with_suffix(suffix))
    plt.close(fig)


if __name__ == "__main__":
    command("bench", main)
