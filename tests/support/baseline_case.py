"""Runs for tests/baselines in float64, on which every formula can be written out.

A two-layer classifier, and a linear regression at its exact minimum.
"""

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import nn

from inrun.baselines import AdamMoments, Checkpoint

DOUBLE = torch.float64


class Classifier:
    """3 inputs, 5 tanh units, 3 classes; 14 samples with scattered ids; three checkpoints of Adam,
    learning rates 0.03, 0.02, 0.01.
    """

    sample_ids = np.array([40, 7, 9, 1, 30, 31, 32, 33, 5, 6, 50, 51, 52, 8])
    targets = ("val",)
    checkpoints = (Checkpoint(4, 0.03), Checkpoint(8, 0.02), Checkpoint(12, 0.01))

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(3, 3, generator=generator, dtype=DOUBLE)
        self.y, self.target_y = torch.arange(14) % 3, torch.arange(6) % 3
        self.x = centres[self.y] + torch.randn(14, 3, generator=generator, dtype=DOUBLE)
        self.target_x = centres[self.target_y] + torch.randn(
            6, 3, generator=generator, dtype=DOUBLE
        )
        self.y[2] = 0  # wrong
        self._kept = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for checkpoint in self.checkpoints:
            optimizer.param_groups[0]["lr"] = checkpoint.lr
            for _ in range(4):
                optimizer.zero_grad()
                F.cross_entropy(model(self.x), self.y).backward()
                optimizer.step()
            first, second = (
                {name: optimizer.state[p][key].clone() for name, p in model.named_parameters()}
                for key in ("exp_avg", "exp_avg_sq")
            )
            moments = AdamMoments(first, second, (0.9, 0.999), 1e-8)
            self._kept.append(({k: v.clone() for k, v in model.state_dict().items()}, moments))

    def rows(self, ids):
        return [list(self.sample_ids).index(i) for i in ids]

    def model(self, checkpoint=-1):
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model.load_state_dict(self._kept[checkpoint][0])
        return model.eval()

    def moments(self, checkpoint=-1):
        return self._kept[checkpoint][1]

    def losses(self, model, ids):
        return F.cross_entropy(self.logits(model, ids), self.labels(ids), reduction="none")

    def target_losses(self, model, target):
        return F.cross_entropy(model(self.target_x), self.target_y, reduction="none")

    def features(self, model, ids):
        return model[:2](self.x[self.rows(ids)])

    def target_features(self, model, target):
        return model[:2](self.target_x)

    def labels(self, ids):
        return self.y[self.rows(ids)]

    def logits(self, model, ids):
        return model(self.x[self.rows(ids)])

    def target_labels(self, target):
        return self.target_y

    def target_logits(self, model, target):
        return model(self.target_x)

    def history(self):
        rows = [
            {
                "epoch": epoch,
                "sample_id": int(i),
                "correct": bool((epoch * (k + 1)) % 3),
                "error_norm": epoch + k / 10,
            }
            for epoch in range(4)
            for k, i in enumerate(self.sample_ids)
        ]
        return pa.Table.from_pylist(rows)

    def values(self, method, target):
        return pa.table(
            {"sample_id": np.sort(self.sample_ids), "value": np.sort(self.sample_ids) / 2.0}
        )


class LinearRegression:
    """Squared errors, mean over samples plus (damping / 2) |w|^2, at the exact minimum;
    `minimum(rows)` is that of other samples, with the divisor unchanged.
    """

    sample_ids = np.arange(20)
    targets = ("val",)
    checkpoints = (Checkpoint(1, 1.0),)
    damping = 0.1

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(20, 4, generator=generator, dtype=DOUBLE)
        self.y = self.x.sum(1) + torch.randn(20, generator=generator, dtype=DOUBLE)
        self.target_x = torch.randn(7, 4, generator=generator, dtype=DOUBLE)
        self.target_y = self.target_x.sum(1) + torch.randn(7, generator=generator, dtype=DOUBLE)
        self.w = self.minimum(range(20))

    def minimum(self, rows):
        x, y = self.x[list(rows)], self.y[list(rows)]
        return torch.linalg.solve(
            2 * x.T @ x / 20 + self.damping * torch.eye(4, dtype=DOUBLE), 2 * x.T @ y / 20
        )

    def model(self, checkpoint=-1):
        model = nn.Linear(4, 1, bias=False).double()
        model.weight.data.copy_(self.w)
        return model.eval()

    def losses(self, model, ids):
        return (self.predictions(model, ids) - self.numbers(ids)) ** 2

    def target_losses(self, model, target):
        return (self.target_predictions(model, target) - self.target_y) ** 2

    def numbers(self, ids):
        return self.y[list(ids)]

    def predictions(self, model, ids):
        return model(self.x[list(ids)])[:, 0]

    def target_numbers(self, target):
        return self.target_y

    def target_predictions(self, model, target):
        return model(self.target_x)[:, 0]


def loop_gradients(model, outputs):
    """[n, p]: one backward for each of the outputs [n]."""
    rows = []
    for value in outputs:
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)
