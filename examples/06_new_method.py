"""A method of your own: its options, and a function that gives the direction V.

python examples/06_new_method.py
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from inrun import Attributor, FirstOrder
from inrun.methods import Method, Step, Target, method


@dataclass(frozen=True, kw_only=True)
class Part(Method):
    """First order through some parameters only: what a sample does by way of them."""

    kind: str = field(default="part", init=False)
    only: str = ""
    "regular expression of parameter names"

    @property
    def known_before(self) -> bool:
        """V needs nothing of the batch, so dots are taken while the backward runs."""
        return True


@method("part", Part)
def part(what: Part, step: Step, target: Target) -> dict[str, torch.Tensor]:
    """A sample's value is <g_i, V>, summed over the parameters that V has."""
    return {
        name: step.frozen(what, name, gradient)  # through the optimizer's slope, as it stands
        for name, gradient in target.gradient().items()
        if re.search(what.only, name)
    }


torch.manual_seed(0)
x, y = torch.randn(32, 8), torch.randint(3, (32,))
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
targets = {"val": lambda: F.cross_entropy(model(x[:8]), y[:8])}
methods = [FirstOrder(), Part(only=r"^0\.", name="lower"), Part(only=r"^2\.", name="upper")]

with Attributor(model, optimizer, targets, methods) as attr:
    with attr.batch(range(32)):
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
    found = {name: values for (name, _), values in attr.last_step.values.items()}

print("sample 0:", {name: f"{values[0]:+.2e}" for name, values in found.items()})
print("parts add up:", torch.allclose(found["first_order"], found["lower"] + found["upper"]))
