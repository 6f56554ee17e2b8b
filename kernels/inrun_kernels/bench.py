"""Time every route of every op that has a choice, on the machine at hand.

    python -m inrun_kernels.bench                  add rows to kernels/inrun_kernels/bench.csv
    python -m inrun_kernels.bench --calibrate      also keep them as this device's table

A device's own table beats the cost model's predictions. Routes of one shape are timed in turns, the
order reversed every second round, and compared with the plain operation of the same round: a row's
`ratio` is the median over rounds of plain / route (0.95 = 5 % slower than without dots). Read
ratios; seconds are those of a machine that may be shared.
"""

import argparse
import csv
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import inrun_kernels
from inrun_kernels import cost
from inrun_kernels.backend import has_triton

COLUMNS = [
    "date",
    "machine",
    "threads",
    "torch",
    "triton",
    "op",
    "route",
    "n",
    "t",
    "i",
    "o",
    "k",
    "dtype",
    "seconds",
    "plain_seconds",
    "ratio",
    "ratio_min",
    "ratio_max",
    "rounds",
]
# (n, t, i, o): a small transformer's layer, GPT-2 small's four, and short samples.
SHAPES = [
    (8, 256, 256, 1024),
    (4, 512, 768, 768),
    (4, 512, 768, 2304),
    (4, 512, 768, 3072),
    (4, 512, 3072, 768),
    (32, 32, 768, 768),
    (128, 4, 768, 768),
]
HEADS = [(4, 256, 256, 8192), (4, 256, 256, 50257), (2, 512, 768, 50257)]


def machine_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the CPU's architecture, cores and vector width."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} "
        f"{torch.get_num_threads()} threads"
    )


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds by name of every round; one untimed round first."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(timed(calls[name], device))
    return times


def rows_of(
    op: str, shape: tuple, calls: dict[str, Callable], rounds: int, device: torch.device
) -> list[dict]:
    """One row per route, compared with `calls["plain"]`; shape = (n, t, i, o, k, dtype)."""
    times = interleaved(calls, rounds, device)
    plain = times.pop("plain")
    rows = []
    for route, seconds in times.items():
        ratios = [p / s for p, s in zip(plain, seconds)]
        numbers = (statistics.median(seconds), statistics.median(plain), statistics.median(ratios))
        row = dict(zip(["n", "t", "i", "o", "k"], shape[:5]))
        row |= {
            "op": op,
            "route": route,
            "dtype": str(shape[5]).removeprefix("torch."),
            "rounds": rounds,
        }
        row |= dict(zip(("seconds", "plain_seconds", "ratio"), (f"{x:.4g}" for x in numbers)))
        row |= {"ratio_min": f"{min(ratios):.4g}", "ratio_max": f"{max(ratios):.4g}"}
        rows.append(row)
    return rows


def bench_products(shape: tuple, rounds: int, device: torch.device, backend: str) -> list[dict]:
    """Every route of wgrad_dots and outer_dots against the plain weight gradient."""
    n, t, i, o, k, dtype = shape
    a, b = (
        torch.randn(n, t, i, device=device).to(dtype),
        torch.randn(n, t, o, device=device).to(dtype),
    )
    V = torch.randn(k, o, i, device=device)
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)

    def routed(op: str, route: str) -> Callable:
        def call():
            with cost.prefer(**{op: route}):
                return getattr(inrun_kernels, op)(a, b, V)

        return call

    rows = []
    for op in cost.ROUTES:
        calls = {route: routed(op, route) for route in cost.BACKEND_ROUTES[backend][op]}
        calls["plain"] = lambda: torch.mm(flat_b.t(), flat_a)
        rows += rows_of(op, shape, calls, rounds, device)
    return rows


def bench_head(shape: tuple, rounds: int, device: torch.device) -> list[dict]:
    """The fused head, forward and backward, against linear + cross_entropy with whole logits."""
    n, t, i, v, k, dtype = shape
    x = torch.randn(n, t, i, device=device).to(dtype).requires_grad_()
    w = (torch.randn(v, i, device=device) * 0.02).requires_grad_()
    targets = torch.randint(0, v, (n, t), device=device)
    V, probe = (
        torch.randn(k, v, i, device=device),
        torch.zeros(k, n, device=device, requires_grad=True),
    )

    def plain():
        z = F.linear(x, w.to(dtype)).flatten(0, 1)
        return torch.autograd.grad(F.cross_entropy(z.float(), targets.flatten()), (x, w))

    def fused():
        return torch.autograd.grad(
            inrun_kernels.linear_cross_entropy(x, w, targets, V, probe), (x, w, probe)
        )

    return rows_of("linear_cross_entropy", shape, {"fused": fused, "plain": plain}, rounds, device)


def stamp(rows: list[dict], device: torch.device) -> list[dict]:
    """The rows with machine, versions and date."""
    version = "none"
    if has_triton():
        from importlib.metadata import version as installed

        version = installed("triton")
    common = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version,
    }
    return [common | row for row in rows]


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a table, with its header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def report(path: Path, rows: list[dict], device: torch.device) -> list[dict]:
    """Stamp, print and append rows as they come, so that an interrupted run keeps what it has."""
    rows = stamp(rows, device)
    append(path, rows)
    for row in rows:
        shape = " ".join(f"{name}={row[name]}" for name in ["n", "t", "i", "o", "k"])
        print(
            f"{row['op']:21} {row['route']:9} {row['dtype']:9} {shape:36} ratio "
            f"{row['ratio']:>7}  {row['seconds']} s"
        )
    return rows


def calibrate(rows: list[dict], device: torch.device) -> Path:
    """Replace the device's measured table by these rows' routes and return its path.

    `inrun_kernels.cost.choose` reads it.
    """
    path = cost.table_path(cost.device_key(device))
    path.unlink(missing_ok=True)
    append(path, [row for row in rows if row["op"] in cost.ROUTES])
    cost.forget_measurements()
    return path


def main() -> int:
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m inrun_kernels.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("bench.csv"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the smallest shapes only")
    parser.add_argument(
        "--calibrate", action="store_true", help="keep the routes' times as this device's table"
    )
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = "triton" if device.type == "cuda" and has_triton() else "torch"
    rows = []
    with inrun_kernels.use(backend):
        for dtype in (torch.float32, torch.bfloat16):
            for size in SHAPES[:1] if options.quick else SHAPES:
                for k in (1, 4):
                    rows += report(
                        options.out,
                        bench_products((*size, k, dtype), options.rounds, device, backend),
                        device,
                    )
            for size in HEADS[:1] if options.quick else HEADS:
                rows += report(
                    options.out, bench_head((*size, 1, dtype), options.rounds, device), device
                )
    print(f"{len(rows)} rows added to {options.out}")
    if options.calibrate:
        print(f"measured table of this device: {calibrate(rows, device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
