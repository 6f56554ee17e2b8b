"""What docs/method.md says of a value's place in the game of retraining, shown on runs that are
small enough to retrain for every coalition.
"""

import copy
from itertools import permutations, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun import Attributor
from inrun.evaluate.step_game import StepGame
from inrun.shapley import exact

BATCHES = [(0, 1, 2), (3, 4, 5)]
LR = 0.4


class Run:
    """Two steps of SGD with three samples each; a sample that is absent leaves its gradient out."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.7 * normal(*p.shape))
        self.x, self.val_x = normal(6, 4), normal(5, 4)
        self.y, self.val_y = (self.x.sum(1) > 0).long(), (self.val_x.sum(1) > 0).long()

    def target(self, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(self.val_x), self.val_y)

    def losses(self, model: nn.Module, members: list[int]) -> Tensor:
        """Each sample's share of the batch's mean: the divisor does not depend on who is there."""
        return F.cross_entropy(model(self.x[members]), self.y[members], reduction="none") / 3

    def drop(self, members: set[int]) -> float:
        """v(S): what the whole run with these samples alone does to the target's loss."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        for batch in BATCHES:
            present = [i for i in batch if i in members]
            if present:
                optimizer.zero_grad()
                self.losses(model, present).sum().backward()
                optimizer.step()
        return float((self.target(self.model) - self.target(model)).detach())

    def orders(self):
        """Those in which every sample of the first step comes before every one of the second."""
        for parts in product(*(permutations(batch) for batch in BATCHES)):
            yield [i for part in parts for i in part]


def test_values_of_the_steps_are_the_asymmetric_shapley_value_of_retraining():
    run = Run()
    known = {}
    asymmetric, count = np.zeros(6), 0
    for order in run.orders():
        count += 1
        for k, i in enumerate(order):
            before, after = frozenset(order[:k]), frozenset(order[: k + 1])
            for members in (before, after):
                if members not in known:
                    known[members] = run.drop(set(members))
            asymmetric[i] += known[after] - known[before]
    asymmetric /= count

    in_run = np.zeros(6)
    model = copy.deepcopy(run.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for batch in BATCHES:
        members = list(batch)
        game = StepGame(model, optimizer, lambda m, b=members: run.losses(m, b), run.target)
        in_run[members] = exact(game.utility, game.n)
        optimizer.zero_grad()
        run.losses(model, members).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(in_run, asymmetric, rtol=1e-12, atol=1e-14)

    table = [run.drop({i for i in range(6) if s >> i & 1}) for s in range(2**6)]
    symmetric = exact(np.array(table) - table[0], 6)
    assert np.abs(symmetric - asymmetric).max() > 0.01, "the two views should differ here"
    np.testing.assert_allclose(symmetric.sum(), asymmetric.sum(), rtol=1e-12)


def test_equal_samples_of_two_steps_get_what_each_did():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.ones(1, 1, dtype=torch.float64)
    loss = lambda: model(x).square().sum() / 2  # noqa: E731
    found = []
    with Attributor(model, optimizer, {"val": loss}, "path") as attributor:
        for sample in (0, 1):
            with attributor.batch([sample]):
                loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(attributor.last["val"]))
    np.testing.assert_allclose(found, [0.5, 0.0], atol=1e-15)
    # either sample alone brings the weight to 0, both together as well
    np.testing.assert_allclose(exact(np.array([0.0, 0.5, 0.5, 0.5]), 2), [0.25, 0.25])
