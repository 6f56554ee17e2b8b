"""The truth itself: `StepGame` is the real step of the real optimizer, and leaves no trace."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inrun.attributor import Attributor
from inrun.evaluate.step_game import StepGame
from inrun.updates import Lion
from tests.support.step_case import StepCase, gpt2_case, regression_case

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, maximize=False),
    "lion": lambda p: Lion(p, lr=0.01, weight_decay=0.1),
}

# Per-sample gradients are added up in another order than the backward of the sum does it: a few
# dozen terms, float64.
SUM_TOLERANCE = 1e-12


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_everybody_is_the_real_step_and_drop_is_drift_plus_their_utility(optimizer):
    case = regression_case(OPTIMIZERS[optimizer], warm_steps=3)
    game = case.game()
    model, real = case.copies()
    before = case.loss(model)
    case.step(model, real)
    after = game.weights_after(np.ones(game.n, dtype=bool))
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], p.detach(), rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)
    drop = before - case.loss(model)
    assert game.drop == pytest.approx(drop, abs=SUM_TOLERANCE)
    assert game.drift + game.utility(np.ones(game.n, dtype=bool)) == pytest.approx(
        drop, abs=SUM_TOLERANCE
    )
    assert game.utility(np.zeros(game.n, dtype=bool)) == 0.0


def test_a_coalition_is_the_step_of_a_training_loop_with_the_others_left_out_and_the_divisor_kept():
    case = gpt2_case(lambda g: torch.optim.AdamW(g, lr=1e-3), warm_steps=2, n=4, clip=0.5)
    game = case.game()
    model, optimizer = case.copies()
    nobody, optimizer_of_nobody = case.copies()
    case.sample_losses(model).sum().backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    factor = min(1.0, 0.5 / float(norm + 1e-6))
    assert factor < 1
    assert game.factor == pytest.approx(factor, rel=1e-12)
    model.zero_grad()
    (factor * case.sample_losses(model)[[0, 3]].sum()).backward()
    optimizer.step()
    for p in nobody.parameters():
        p.grad = torch.zeros_like(p)
    optimizer_of_nobody.step()
    expected = case.loss(nobody) - case.loss(model)
    assert game.utility(np.array([True, False, False, True])) == pytest.approx(
        expected, abs=SUM_TOLERANCE
    )


def test_utilities_have_the_same_bits_in_any_order_and_the_live_run_is_untouched():
    case = gpt2_case(lambda g: torch.optim.AdamW(g, lr=1e-2), warm_steps=2, n=3)
    weights = copy.deepcopy(case.model.state_dict())
    state = copy.deepcopy(case.optimizer.state_dict())
    random_state = torch.get_rng_state()
    calls = []
    case.optimizer.register_step_pre_hook(lambda *_: calls.append("stepped"))
    with Attributor(
        case.model, case.optimizer, {"val": lambda: case.target(case.model)}, "first_order"
    ):
        game = case.game()
        masks = [np.array([k >> i & 1 for i in range(3)], dtype=bool) for k in range(8)]
        forward = [game.utility(mask) for mask in masks]
        backward = [game.utility(mask) for mask in reversed(masks)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 8
    assert not calls
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    for key, entry in case.optimizer.state_dict()["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(tensor, state["state"][key][name])


def test_dropout_and_buffers_are_the_same_for_every_coalition():
    model = (
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        .double()
        .train()
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    loss = lambda m: F.mse_loss(m(x), y, reduction="none").mean(1)  # noqa: E731
    game = StepGame(model, optimizer, loss, lambda m: loss(m).mean())
    some = np.array([True, False, True, True, False])
    first = game.utility(some)
    game.utility(~some)
    torch.randn(7)
    assert game.utility(some) == first


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = (
            nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3)
        )


def two_heads_game(make) -> StepGame:
    model = TwoHeads()
    optimizer = make(model)
    shares = lambda m: torch.stack([(2 * m.a).sum(), (3 * m.b).sum()])  # noqa: E731
    return StepGame(model, optimizer, shares, lambda m: (m.a + m.b + m.unused).sum())


def test_a_parameter_without_gradient_is_left_out_and_one_the_coalition_does_not_reach_decays():
    game = two_heads_game(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.5))
    after = game.weights_after(np.array([True, False]))
    # a: 1 - 0.1 (2 + 0.5); b: 1 - 0.1 * 0.5; unused has no gradient in the real step either: not
    # even decay
    assert after["a"].tolist() == pytest.approx([0.75, 0.75])
    assert after["b"].tolist() == pytest.approx([0.95, 0.95])
    assert after["unused"].tolist() == [1.0, 1.0]


def test_several_optimizers_step_together():
    game = two_heads_game(
        lambda m: [torch.optim.SGD([m.a], lr=0.1), torch.optim.SGD([m.b], lr=0.01)]
    )
    # loss = sum(a) + sum(b): sample 0 moves a by 0.1 * 2 in two elements, sample 1 moves b by 0.01
    # * 3
    assert game.utility(np.array([True, False])) == pytest.approx(0.4)
    assert game.utility(np.array([False, True])) == pytest.approx(0.06)
    assert game.utility(np.array([True, True])) == pytest.approx(0.46)


def test_what_cannot_be_a_game_is_refused():
    case = regression_case(OPTIMIZERS["sgd"], 0)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not the model's"):
        StepCase(case.model, other, case.sample_losses, case.target).game()
    with pytest.raises(ValueError, match=r"expected \[n\]"):
        StepCase(
            case.model, case.optimizer, lambda m: case.sample_losses(m).sum(), case.target
        ).game()
    with pytest.raises(ValueError, match="no sample's loss"):
        StepCase(
            case.model, case.optimizer, lambda m: torch.ones(3, requires_grad=True) * 2, case.target
        ).game()
    with pytest.raises(ValueError, match=r"boolean mask \[7\]"):
        case.game().utility(np.ones(7))
