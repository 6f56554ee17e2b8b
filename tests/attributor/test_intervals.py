"""What is done at some steps only: gradients that are used again, waits for the device."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inrun import Attributor, Intervals
from tests.support import per_sample
from tests.support.small_models import loss_of, rows, small


@pytest.mark.parametrize("method", ["first_order", "path"])
def test_a_stale_direction_is_the_targets_gradient_at_the_last_refresh(method):
    """SGD, so that V = lr g: between refreshes a sample's value is its gradient's dot with the
    older g.
    """
    model, batches, val = small("gpt2"), [rows(3, seed) for seed in range(4)], rows(2, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attr = Attributor(
        model,
        optimizer,
        {"val": lambda: loss_of(model, val, 0.1)},
        method,
        intervals=Intervals(refresh=2, ledger=0),
    )
    kept, got, expected = None, [], []
    for number, batch in enumerate(batches):
        own = [
            per_sample.gradients(model, loss_of(model, batch[i : i + 1], 0.01)) for i in range(3)
        ]
        if number % 2 == 0:
            at = copy.deepcopy(model)
            with torch.no_grad():
                for name, p in at.named_parameters():
                    p.sub_(
                        0.0 if method == "first_order" else 0.5 * 0.1 * sum(g[name] for g in own)
                    )
            kept = per_sample.gradients(at, loss_of(at, val, 0.1))
        expected.append([0.1 * per_sample.dot(g, kept) for g in own])
        with attr.batch(range(3)):
            loss_of(model, batch, 0.01).backward()
        optimizer.step()
        optimizer.zero_grad()
        got.append(attr.last["val"])
    torch.testing.assert_close(
        torch.stack(got), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-14
    )


def test_a_checkpoint_refreshes_the_direction_so_that_a_resumed_run_gives_the_same_values():
    model, val = small("gpt2"), rows(2, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def attributor():
        return Attributor(
            model,
            optimizer,
            {"val": lambda: loss_of(model, val, 0.1)},
            "first_order",
            intervals=Intervals(refresh=3, ledger=0),
        )

    def step(attr, seed):
        with attr.batch(range(3)):
            loss_of(model, rows(3, seed), 0.01).backward()
        optimizer.step()
        optimizer.zero_grad()
        return attr.last["val"]

    attr = attributor()
    step(attr, 0)
    state, weights = attr.state_dict(), copy.deepcopy(model.state_dict())
    uninterrupted = [step(attr, 1), step(attr, 2)]
    attr.close()
    model.load_state_dict(weights)
    resumed = attributor()
    resumed.load_state_dict(state)
    assert torch.equal(
        torch.stack(uninterrupted), torch.stack([step(resumed, 1), step(resumed, 2)])
    )


def test_second_order_refuses_a_stale_direction():
    model = small("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="'second_order' cannot: its Hessian-vector product"):
        Attributor(
            model,
            optimizer,
            {"val": lambda: loss_of(model, rows(2, 9), 0.1)},
            "second_order",
            intervals=Intervals(refresh=2),
        )


class Waits(TorchDispatchMode):
    """Counts the reads of a number from a tensor: on a GPU each waits for everything that was asked
    of it before.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "first_order"), ("gpt2", "second_order"), ("pythia", "path")]
)
def test_a_step_waits_for_the_device_as_often_in_a_deep_model_as_in_a_shallow_one(
    family, method, monkeypatch
):
    waits = Waits()

    def tolist(tensor, original=torch.Tensor.tolist):
        waits.count += 1
        return original(tensor)

    def counted(layers: int) -> int:
        torch.manual_seed(0)
        model, train, val = small(family, torch.float32, n_layer=layers), rows(3, 1), rows(2, 2)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, fused=True
        )  # asks nothing itself
        attr = Attributor(
            model, optimizer, {"val": lambda: loss_of(model, val, 0.1)}, method, route="fused"
        )
        for step in range(
            5
        ):  # from the fourth step on nobody asks for elements without optimizer state
            waits.count = 0
            with waits if step == 4 else nullcontext():
                with attr.batch(range(3)):
                    loss_of(model, train, 0.02).backward()
                optimizer.step()
                optimizer.zero_grad()
        return waits.count

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    assert counted(1) == counted(3) <= 20
