"""Learning rate, decay groups and clipping; an optimizer registered from outside."""

import math
import shutil

import pytest
import torch
from torch import nn

from inrun.train import OptimConfig, Run
from inrun.train.dry_run import estimate
from inrun.train.optim import OPTIMIZERS, build_optimizer, clip_gradients, lr_at, optimizer
from inrun.updates import Lion, Update, register
from inrun.updates.base import RULES
from tests.support.train_example import config, tables, weights, write_documents


def test_learning_rate_rises_falls_and_stays():
    schedule = OptimConfig(lr=1.0, min_lr=0.1, warmup=4, decay_steps=14)
    rates = [lr_at(step, 100, schedule) for step in range(30)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5)  # half way along the cosine
    assert rates[6] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert rates[14:] == [0.1] * 16
    assert lr_at(99, 100, OptimConfig(lr=1.0, min_lr=0.0, warmup=0)) > 0


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lion", Lion)]
)
def test_vectors_are_not_decayed(name, kind):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.2))
    assert type(optimizer) is kind
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert [decay[id(p)] for p in model.parameters()] == [0.2, 0.0, 0.0, 0.0]


def test_clipping_is_by_the_global_norm():
    model = nn.Linear(2, 1)
    for largest, factor in ((1.0, 1 / 13), (0.0, 1.0), (20.0, 1.0)):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
        assert float(clip_gradients(model, largest)) == pytest.approx(13.0)
        assert model.weight.grad.flatten().tolist() == pytest.approx(
            [3 * factor, 4 * factor], rel=1e-5
        )
        assert model.bias.grad.tolist() == pytest.approx([12 * factor], rel=1e-5)


class Toy(torch.optim.Optimizer):
    """Plain SGD that remembers the last gradient, as somebody might write it."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["last"] = p.grad.clone()
                    p.add_(p.grad, alpha=-group["lr"])


class ToyUpdate(Update):
    def __call__(self, g):
        return self.lr * g


def test_optimizer_registered_from_outside_trains_values_and_is_resumed(tmp_path):
    write_documents(tmp_path / "raw")
    common = {"optim__lr": 0.1, "optim__min_lr": 0.01, "train__checkpoint_every": 6}
    common |= {"optim__weight_decay": 0.0, "attribution__method": [{"kind": "path"}]}
    with OPTIMIZERS.restored(), RULES.restored():
        optimizer("toy")(lambda groups, config: Toy(groups, config.lr))
        register(Toy)(ToyUpdate)
        settings = config(tmp_path, "toy", optim__name="toy", **common)
        guess = estimate(settings)
        assert guess.optimizer == guess.weights
        run = Run.start(settings)
        run.train().close()
        shutil.rmtree(run.files.checkpoint(12))
        Run.resume(run.folder).train().close()
    plain = Run.start(config(tmp_path, "sgd", optim__name="sgd", **common))
    plain.train().close()
    # the oracle is torch's own: without momentum and decay its step is the toy's, bit for bit
    got, want = weights(run.folder), weights(plain.folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    kept = [name for name in got if name.startswith("last/")]
    assert len(kept) == len(list(plain.model.parameters()))
    for mine, theirs in zip(tables(run.folder)["terms"], tables(plain.folder)["terms"]):
        # the toy's slope is from differences of float64, SGD's is in closed form
        assert mine["path"] == pytest.approx(theirs["path"], rel=1e-5, abs=1e-9)
