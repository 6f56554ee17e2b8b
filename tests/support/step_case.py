"""One step of training in float64, seen twice: by the engine (`values`) and by the truth
(`game`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun.attributor import Attributor
from inrun.attributor.result import StepResult
from inrun.evaluate.step_game import StepGame
from inrun.models import GPT2Config, build_from, decay_groups


@dataclass
class StepCase:
    """A model and an optimizer just before a step, the batch's shares, a target. Nothing here is
    moved by `values` or `game`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sample_losses: Callable[[nn.Module], Tensor]
    target: Callable[[nn.Module], Tensor]
    clip: float | None = None

    def game(self) -> StepGame:
        return StepGame(self.model, self.optimizer, self.sample_losses, self.target, clip=self.clip)

    def loss(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float(self.target(model))

    def copies(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.model)
        own = dict(zip(self.model.parameters(), model.parameters()))
        groups = [
            {**group, "params": [own[p] for p in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        optimizer = type(self.optimizer)(groups)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return model, optimizer

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        attributor: Attributor | None = None,
    ) -> None:
        optimizer.zero_grad()
        if attributor is None:
            self.sample_losses(model).sum().backward()
        else:
            ids = np.arange(len(self.sample_losses(model)))
            with attributor.batch(ids):
                self.sample_losses(model).sum().backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        optimizer.step()

    def values(self, *methods, **options) -> dict[str, np.ndarray]:
        """method name -> values [n]."""
        result = self.result(*methods, **options)
        return {name: values.numpy() for (name, _), values in result.values.items()}

    def result(self, *methods, **options) -> StepResult:
        model, optimizer = self.copies()
        with Attributor(
            model, optimizer, {"val": lambda: self.target(model)}, list(methods), **options
        ) as attributor:
            self.step(model, optimizer, attributor)
        return attributor.last_step


def markov_tokens(n: int, t: int, vocab: int, generator: torch.Generator) -> Tensor:
    """Token rows [n, t + 1] with something to learn: mostly 3 x + 1, now and then a random
    token.
    """
    rows = torch.randint(vocab, (n, t + 1), generator=generator)
    for k in range(1, t + 1):
        follow = (3 * rows[:, k - 1] + 1) % vocab
        keep = torch.rand(n, generator=generator) < 0.8
        rows[:, k] = torch.where(keep, follow, rows[:, k])
    return rows


def gpt2_case(
    make_optimizer: Callable[[list[dict]], torch.optim.Optimizer],
    warm_steps: int,
    n: int = 8,
    clip: float | None = None,
    vocab: int = 48,
    block: int = 12,
    seed: int = 0,
) -> StepCase:
    """A tiny float64 GPT-2 after `warm_steps` steps of the optimizer on other batches; decay on
    matrices only.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_from(
            GPT2Config(vocab_size=vocab, block_size=block, n_layer=2, n_head=2, d_model=24)
        ).double()
    optimizer = make_optimizer(decay_groups(model, weight_decay=0.1))

    def shares(m: nn.Module, rows: Tensor) -> Tensor:
        losses = m.loss(rows[:, :-1], rows[:, 1:], reduction="none")
        return losses.sum(1) / losses.numel()  # the batch's mean loss per token

    for _ in range(warm_steps):
        rows = markov_tokens(n, block, vocab, generator)
        optimizer.zero_grad()
        shares(model, rows).sum().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    optimizer.zero_grad()
    batch = markov_tokens(n, block, vocab, generator)
    # one sample of noise, one duplicate: values that differ
    batch[1] = torch.randint(vocab, (block + 1,), generator=generator)
    held_out = markov_tokens(4, block, vocab, generator)
    return StepCase(
        model, optimizer, lambda m: shares(m, batch), lambda m: shares(m, held_out).sum(), clip
    )


def regression_case(
    make_optimizer: Callable[..., torch.optim.Optimizer], warm_steps: int, n: int = 7
) -> StepCase:
    """Linear regression with a squared error: the target is exactly quadratic in the weights."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Linear(5, 3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(normal(*p.shape))
    optimizer = make_optimizer(model.parameters())
    truth = normal(5, 3)
    x, val_x = normal(n, 5), normal(6, 5)
    y, val_y = x @ truth + 0.3 * normal(n, 3), val_x @ truth
    losses = lambda m: F.mse_loss(m(x), y, reduction="none").mean(1) / n  # noqa: E731
    case = StepCase(model, optimizer, losses, lambda m: F.mse_loss(m(val_x), val_y))
    for _ in range(warm_steps):
        case.step(model, optimizer)
    return case
