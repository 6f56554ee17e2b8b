"""`doctor`: what is installed, and whether it works together."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import typer

from inrun.command.options import AsJson
from inrun.command.shown import Printer

#: distributions whose version decides what works
ASKED = ("inrun", "torch", "triton", "numpy", "pyarrow", "duckdb", "transformers", "accelerate")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)


def doctor(json: AsJson = False) -> None:
    """Versions, devices, and one step valued and compared with single-sample gradients."""
    found: dict[str, object] = {"python": platform.python_version(), "system": platform.platform()}
    for name in ASKED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    import torch

    found["threads"] = torch.get_num_threads()
    devices = range(torch.cuda.device_count())
    found["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in devices) or None
    error = _trial()
    found["trial"] = f"one step valued, largest error {error:.1e} of the values"
    Printer(json).fields({key: "not installed" if v is None else v for key, v in found.items()})
    if not error < 1e-9:
        Printer(json).hint("the values of the trial are wrong: please report this output")
        sys.exit(1)


def _trial() -> float:
    """Largest error of one SGD step's first-order values beside single-sample gradients."""
    import torch

    from inrun.attributor import Attributor

    make = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model.double()
    x, val = (torch.randn(n, 4, generator=make, dtype=torch.float64) for n in (6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = list(model.parameters())

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return model(rows).square().mean()

    ahead = torch.autograd.grad(loss(val), weights)
    each = [torch.autograd.grad(loss(row[None]) / len(x), weights) for row in x]
    truth = torch.stack(
        [sum((0.1 * (g * v).sum() for g, v in zip(own, ahead)), torch.zeros(())) for own in each]
    )
    attr = Attributor(model, optimizer, {"val": lambda: loss(val)}, "first_order")
    with attr.batch(range(len(x))):
        loss(x).backward()
    optimizer.step()
    attr.close()
    return float((attr.last["val"] - truth).abs().max() / truth.abs().max())
