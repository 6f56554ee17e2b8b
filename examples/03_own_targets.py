"""Several targets in one run, and what is known of the samples: who helps whom.

python examples/03_own_targets.py
"""

import tempfile

import pyarrow as pa
import torch
import torch.nn.functional as F

from inrun import Attributor, Path, Recording

torch.manual_seed(0)

# a regression whose samples come from two sources; each source covers one half of the line
x = torch.rand(200, 1) * 2 - 1
y = torch.sin(3 * x) + 0.1 * torch.randn_like(x)
source = ["left" if value < 0 else "right" for value in x.flatten().tolist()]
grid = torch.linspace(-1, 1, 41)[:, None]

model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def error_on(points: torch.Tensor):
    """A target is a closure: it reads the model and returns a scalar loss."""
    return lambda: F.mse_loss(model(points), torch.sin(3 * points))


attr = Attributor(
    model,
    optimizer,
    {"left half": error_on(grid[:20]), "right half": error_on(grid[21:])},
    Path(tolerance=0.05),  # more nodes in the steps whose values would not add up
    store=Recording(
        tempfile.mkdtemp(), samples=pa.table({"sample_id": range(200), "source": source})
    ),
)
for _ in range(200):
    ids = torch.randint(200, (16,))
    with attr.batch(ids):
        F.mse_loss(model(x[ids]), y[ids]).backward()
    optimizer.step()
    optimizer.zero_grad()
values = attr.close()

for target in values.targets:
    total = {row["source"]: row["value"] for row in values.by("source", target).to_pylist()}
    print(f"{target}: left {total['left']:+.2f}, right {total['right']:+.2f}")
