"""The ledger of ten steps: drop = drift + values + residual."""

import pytest
import torch
from torch import nn

import inrun
from inrun.attributor import Attributor
from tests.support.step_case import StepCase

# -- the ledger


def train(case: StepCase, steps: int, method, batches, tmp_path, name: str):
    """(ledger rows as a table, total drop of the target) of a run over the batches."""
    model, optimizer = case.copies()
    first = case.loss(model)
    with Attributor(
        model, optimizer, {"val": lambda: case.target(model)}, method, store=tmp_path / name
    ) as attributor:
        for step in range(steps):
            StepCase(model, optimizer, batches[step], case.target, case.clip).step(
                model, optimizer, attributor
            )
        values = attributor.close()
    rows = values.sql("SELECT * FROM ledger ORDER BY step").to_pylist()
    return rows, first - case.loss(model)


@pytest.fixture
def ten_batches():
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    rows = [(normal(4, 4), normal(4, 2).sin()) for _ in range(10)]
    batches = [lambda m, x=x, y=y: (m(x) - y).square().mean(1) / 4 for x, y in rows]
    x, y = normal(5, 4), normal(5, 2).sin()
    return model, batches, lambda m: (m(x) - y).square().mean()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_step_the_drop_is_drift_plus_values_plus_residual_and_drops_telescope(
    optimizer, ten_batches, tmp_path
):
    model, batches, target = ten_batches
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    }[optimizer]
    case = StepCase(model, make(model.parameters()), batches[0], target, clip=0.5)
    rows, total = train(case, 10, inrun.Path(nodes=2), batches, tmp_path, "run")
    assert len(rows) == 10
    replay, stepper = case.copies()
    for row, batch in zip(rows, batches):
        game = StepCase(replay, stepper, batch, target, clip=0.5).game()
        assert row["drop"] == pytest.approx(game.drop, abs=1e-13)
        assert row["drift"] == pytest.approx(game.drift, abs=1e-13)
        assert row["drop"] == pytest.approx(
            row["drift"] + row["values"] + row["residual"], abs=1e-15
        )
        StepCase(replay, stepper, batch, target, clip=0.5).step(replay, stepper)
    assert sum(row["drop"] for row in rows) == pytest.approx(total, abs=1e-13)


def test_impulse_credit_moves_drift_to_values_and_leaves_the_residual(ten_batches, tmp_path):
    model, batches, target = ten_batches
    case = StepCase(
        model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), batches[0], target
    )
    now, _ = train(case, 10, inrun.Path(), batches, tmp_path, "immediate")
    later, _ = train(case, 10, inrun.Path(credit="impulse"), batches, tmp_path, "impulse")
    for a, b in zip(now, later):
        assert b["values"] == pytest.approx(10 * a["values"], rel=1e-9)
        assert b["residual"] == pytest.approx(a["residual"], abs=1e-14)
        assert b["drop"] == a["drop"]
        assert b["drift"] + b["values"] == pytest.approx(a["drift"] + a["values"], abs=1e-14)
