"""What is kept until a direction is known is bounded; past it micro-batches are run once more."""

import logging

import pytest
import torch

from inrun import Attributor, Tap
from inrun.attributor import kept
from inrun.attributor.micro_batches import MicroBatches
from inrun.ghost import Tape
from tests.support import per_sample
from tests.support.small_models import loss_of, rows, small

CUTS = ([0, 1, 2], [3], [4, 5])


@pytest.fixture
def watched(monkeypatch):
    """The sizes of tapes, and the micro-batches that were run again."""
    sizes, again = [], []
    nbytes, replayed = Tape.nbytes, MicroBatches.replayed
    monkeypatch.setattr(Tape, "nbytes", lambda tape: sizes.append(nbytes(tape)) or sizes[-1])
    monkeypatch.setattr(
        MicroBatches,
        "replayed",
        lambda self, micro, record: again.append(len(micro)) or replayed(self, micro, record),
    )
    return sizes, again


def valued(route: object, with_forward: bool, warm: int = 0):
    """Values and weights of an AdamW step in micro-batches."""
    torch.manual_seed(0)
    model, train, val = small("gpt2", dropout=0.1), rows(6, 1), rows(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for _ in range(warm):
        loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
    attr = Attributor(model, optimizer, {"val": lambda: loss_of(model, val, 0.1)}, route=route)
    for ids in CUTS:

        def forward(ids=ids):
            return loss_of(model, train[ids], 0.02)

        with attr.batch(ids, forward=forward if with_forward else None):
            forward().backward()
    optimizer.step()
    return attr.last["val"], [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("warm", [0, 5])
def test_micro_batches_past_the_room_are_run_again_for_the_same_values_and_bits(
    warm, watched, caplog
):
    sizes, again = watched
    whole, weights = valued("tap", True, warm)
    assert again == []
    with caplog.at_level(logging.WARNING):
        values, moved = valued(Tap(memory=sizes[0] + sizes[1]), True, warm)
    # the last one; without optimizer state its squares are asked for as well
    assert again == ([2] if warm else [2, 2])
    assert caplog.text.count("are run once more, a forward and a backward each") == 1
    assert per_sample.relative_error(values, whole) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(moved, weights))


def test_without_a_forward_they_are_kept_and_that_is_said(watched, caplog):
    whole, _ = valued("tap", False)
    with caplog.at_level(logging.WARNING):
        values, _ = valued(Tap(memory=0), False)
    assert watched[1] == []
    assert caplog.text.count("Give attr.batch(ids, forward=lambda") == 1
    assert torch.equal(values, whole)


def test_the_room_is_a_quarter_of_the_device_by_default(monkeypatch):
    monkeypatch.setattr(kept, "device_memory", lambda device: 4 << 20)
    assert Tap().room(torch.device("cpu")).budget == 1 << 20
    assert Tap(memory=7).room(torch.device("cpu")).budget == 7
