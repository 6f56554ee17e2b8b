"""A model, an optimizer and a batch that training steps are timed on, and their plain steps.

Every step is forward, backward and a fused AdamW update; "regular" trains on training and
validation sequences together, with this project's fused head.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inrun import Attributor, Intervals
from inrun.attributor import Route
from inrun.config import ConfigError
from inrun.methods import Method
from inrun.models import build
from inrun.registry import Registry


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    model: dict[str, Any]
    """arguments of inrun.models.build"""
    n: int
    """training sequences"""
    m: int
    """validation sequences"""
    t: int
    """tokens of a sequence"""


SMALL = {
    "name": "gpt2",
    "preset": "tiny",
    "n_layer": 4,
    "d_model": 256,
    "n_head": 4,
    "vocab_size": 50304,
}


def _small(n: int = 8, m: int = 2, t: int = 256, **model) -> Size:
    return Size({**SMALL, **model, "block_size": t}, n, m, t)


def _gpt2(n: int, m: int, t: int) -> Size:
    return Size({"name": "gpt2", "preset": "124m", "block_size": t}, n, m, t)


SIZES = {
    "tiny": _small(4, 2, 16, d_model=32, n_layer=1, vocab_size=256),
    "tiny-4+16": _small(4, 16, 16, d_model=32, n_layer=1, vocab_size=256),
    "small": _small(),
    "small-16+1": _small(16, 1),
    "small-4+16": _small(4, 16),
    "small-512": _small(t=512),
    "small-1024": _small(4, 1, 1024),
    "width-128": _small(d_model=128),
    "width-128-512": _small(t=512, d_model=128),
    "width-512": _small(d_model=512, n_head=8),
    "width-768": _small(d_model=768, n_head=12),
    "gpt2-512": _gpt2(4, 1, 512),
    "gpt2-512-8+2": _gpt2(8, 2, 512),
    "gpt2-512-16+1": _gpt2(16, 1, 512),
    "gpt2-1024": _gpt2(4, 1, 1024),
}

#: `function(bench) -> step`, a closure that takes one training step
CASES: Registry[str, Callable[["Bench"], Callable[[], None]]] = Registry("case", ConfigError)


class Bench:
    """One model, one optimizer past its first updates (Adam's are valued in another way,
    `inrun.updates`), fixed batches of random tokens: arithmetic does not depend on the text.
    """

    def __init__(self, size: str, precision: str):
        if size not in SIZES:
            raise ConfigError(f"unknown size {size!r}; choose from {', '.join(SIZES)}")
        torch.manual_seed(0)
        self.name, self.size, self.precision = size, SIZES[size], precision
        self.model = build(**self.size.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=True
        )
        vocab = self.model.config.vocab_size
        self.train, self.val = (
            torch.randint(0, vocab, (rows, self.size.t + 1)) for rows in (self.size.n, self.size.m)
        )
        self.both = torch.cat([self.train, self.val])
        for _ in range(3):
            for p in self.model.parameters():
                p.grad = torch.randn_like(p)
            self.finish()

    def step(self, name: str) -> Callable[[], None]:
        """The closure of a case."""
        return CASES[name](self)

    def compiled(self) -> "Bench":
        """The same bench with its model under torch.compile."""
        twin = Bench(self.name, self.precision)
        twin.model.compile(fullgraph=True)
        return twin

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where the bench has that precision."""
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def loss(self, rows: Tensor, reduction_tokens: int | None = None) -> Tensor:
        """Mean loss of a token; the sum over `reduction_tokens` where they are given."""
        with self.autocast():
            return self.model.loss(rows[:, :-1], rows[:, 1:]) / (
                reduction_tokens or rows[:, 1:].numel()
            )

    def head(self, fused: bool) -> None:
        """Choose the head: this project's fused one, or whole logits."""
        self.model.config = replace(self.model.config, fused_head=fused)

    def plain(self, rows: Tensor, fused: bool) -> Callable[[], None]:
        """Training without values."""

        def step() -> None:
            self.head(fused)
            self.loss(rows).backward()
            self.finish()

        return step

    def valued(
        self,
        method: str | Method,
        targets: int = 1,
        route: str | Route = "fused",
        refresh: int = 1,
    ) -> Callable[[], None]:
        """Training with values; targets: the validation sequences in so many parts."""
        if self.size.m < targets:
            raise ConfigError(
                f"{targets} targets need as many validation sequences; this size has {self.size.m}"
            )
        parts = self.val.chunk(targets)
        closures = {f"val{i}": lambda part=part: self.loss(part) for i, part in enumerate(parts)}
        off = Intervals(refresh=refresh, ledger=0, balance=0)
        attr = Attributor(self.model, self.optimizer, closures, method, route=route, intervals=off)
        forward = (lambda: self.loss(self.train)) if attr.options.runs_again else None

        def step() -> None:
            self.head(True)
            with attr.batch(range(self.size.n), forward=forward):
                self.loss(self.train).backward()
            self.finish()

        return step

    def finish(self) -> None:
        """The update, and no gradients for the next step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def per_sample_loop(
        self, direction: Callable[[list[Tensor], list[Tensor]], list[Tensor]]
    ) -> Callable[[], None]:
        """One backward per training sample; each gradient is kept and dotted with
        `direction(parameters, G)` at the end.
        """

        def step() -> None:
            self.head(True)
            parameters = list(self.model.parameters())
            tokens = self.train[:, 1:].numel()
            found = [
                torch.autograd.grad(self.loss(self.train[i : i + 1], tokens), parameters)
                for i in range(self.size.n)
            ]
            for p, *parts in zip(parameters, *found):
                p.grad = torch.stack(parts).sum(0)
            V = direction(parameters, [p.grad for p in parameters])
            for g in found:
                sum(torch.dot(x.flatten(), v.flatten()) for x, v in zip(g, V))
            self.finish()

        return step
