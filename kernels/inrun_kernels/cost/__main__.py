"""A roofline of each method's overhead for whole models: predictions, nothing else.

    python -m inrun_kernels.cost --model gpt2,pythia-410m --device a100,h100

They come from the phases of inrun_kernels.cost; nothing printed here was measured on a GPU. The
largest assumptions are stated with the table.
"""

import argparse
import sys
from dataclasses import dataclass

import torch

from inrun_kernels import cost

GPUS = tuple(name for name in cost.MACHINES if name != "cpu")

NON_GEMM = 0.25
"""Share of an ordinary step outside matrix products (norms, softmax, optimizer, launches): an
assumption."""


@dataclass(frozen=True)
class Model:
    """What a transformer multiplies."""

    linears: tuple[tuple[int, int, int], ...]
    """(count, inputs, outputs) of the linear layers, the head among them."""
    blocks: int
    """Layers of attention."""
    width: int
    """Their width d."""
    tokens: int
    """Tokens of a sample."""

    def works(self, n: int, k: int) -> list[tuple[int, cost.Work]]:
        return [
            (count, cost.Work(n, self.tokens, i, o, k, torch.bfloat16))
            for count, i, o in self.linears
        ]

    def forward_flops(self, n: int) -> float:
        products = sum(count * work.product for count, work in self.works(n, 1))
        # causal attention: half of 4 T^2 d
        return products + self.blocks * n * 2.0 * self.tokens**2 * self.width


def _transformer(blocks: int, d: int, vocab: int, tokens: int) -> Model:
    linears = (
        (blocks, d, 3 * d),
        (blocks, d, d),
        (blocks, d, 4 * d),
        (blocks, 4 * d, d),
        (1, d, vocab),
    )
    return Model(linears, blocks, d, tokens)


MODELS = {
    "gpt2": _transformer(12, 768, 50257, 1024),
    "pythia-410m": _transformer(24, 1024, 50304, 2048),
}


def step_seconds(model: Model, n: int, machine: cost.Machine) -> float:
    """An ordinary training step: forward and twice as much backward, and what is no product."""
    return 3 * model.forward_flops(n) / machine.flops[torch.bfloat16] / (1 - NON_GEMM)


def route_seconds(model: Model, n: int, k: int, route: str, machine: cost.Machine) -> float:
    """What a route of wgrad_dots adds to the plain weight gradients of all linear layers."""
    return sum(
        count
        * (cost.seconds("wgrad_dots", route, work, machine) - cost.plain_seconds(work, machine))
        for count, work in model.works(n, k)
    )


def pairwise_seconds(model: Model, n: int, m: int, machine: cost.Machine) -> float:
    """Token Grams of n train against m validation samples in all linear layers."""
    rate = machine.flops[torch.bfloat16] * cost.FUSED_FRACTION[2]
    pairs = 2.0 * n * m * model.tokens**2
    return sum(count * pairs * (work.i + work.o) / rate for count, work in model.works(n, 1))


def overheads(model: Model, n: int, machine: cost.Machine) -> list[tuple[str, float]]:
    """(method, seconds added to an ordinary step of n samples)."""
    step = step_seconds(model, n, machine)
    rows = [(f"validation pass, m={m}", step * m / n) for m in (1, 4)]
    for k in (1, 4):
        rows += [(f"dots: fused, k={k}", route_seconds(model, n, k, "fused", machine))]
        rows += [
            (f"dots: batched product + sum_dots, k={k}", route_seconds(model, n, k, "bmm", machine))
        ]
    contraction = sum(
        count * cost.seconds("outer_dots", "fused", work, machine)
        for count, work in model.works(n, 1)
    )
    rows += [("dots after the backward: contract, k=1", contraction)]
    rows += [
        (f"dots: pairwise Grams, m={m}", pairwise_seconds(model, n, m, machine)) for m in (1, 4)
    ]
    # Forward-over-reverse costs two more passes over the m validation samples.
    rows += [("second order, tape kept: HVP of m=1 + contract", 2 * step / n + contraction)]
    replay = step + route_seconds(model, n, 1, "fused", machine)
    rows += [("second order, replayed: HVP of m=1 + one more step", 2 * step / n + replay)]
    return rows


def table(models: list[str], devices: list[str], n: int) -> str:
    """The printed table."""
    lines = [
        "PREDICTED overhead, percent of an ordinary step. No GPU was measured.",
        f"Assumes: bf16, {n} train samples; sustained rates "
        + ", ".join(
            f"{name} {cost.MACHINES[name].flops[torch.bfloat16] / 1e12:.0f} TFLOP/s "
            f"{cost.MACHINES[name].bandwidth / 1e12} TB/s"
            for name in devices
        ),
        f"Triton products at {cost.FUSED_FRACTION[2]} of the library's rate; {NON_GEMM:.0%} "
        "of a step outside products; phases do not",
        "overlap; dots come on top of a validation pass, except pairwise, which needs only "
        "its forward and output gradients.",
        "",
    ]
    columns = [(model, device) for model in models for device in devices]
    lines.append(f"{'':52}" + "".join(f"{model + ' ' + device:>18}" for model, device in columns))
    steps = [step_seconds(MODELS[model], n, cost.MACHINES[device]) for model, device in columns]
    lines.append(f"{'ordinary step, ms':52}" + "".join(f"{1e3 * step:18.1f}" for step in steps))
    results = [overheads(MODELS[model], n, cost.MACHINES[device]) for model, device in columns]
    for row in zip(*results):
        cells = "".join(f"{100 * value / step:17.1f}%" for (_, value), step in zip(row, steps))
        lines.append(f"{row[0][0]:52}" + cells)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table for the models and devices of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m inrun_kernels.cost", description="Predicted overhead of each method."
    )
    parser.add_argument(
        "--model", default="gpt2,pythia-410m", help=f"of {', '.join(MODELS)}, comma-separated"
    )
    parser.add_argument(
        "--device", default="a100,h100", help=f"of {', '.join(GPUS)}, comma-separated"
    )
    parser.add_argument("--samples", type=int, default=16, help="train samples of a step")
    options = parser.parse_args()
    models, devices = options.model.split(","), options.device.split(",")
    for name, known in [(m, MODELS) for m in models] + [(d, GPUS) for d in devices]:
        if name not in known:
            parser.error(f"unknown {name!r}: choose from {', '.join(known)}")
    sys.stdout.write(table(models, devices, options.samples))


if __name__ == "__main__":
    main()
