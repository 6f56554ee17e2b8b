"""Whole training steps, with and without values, on models of a given size: what
`experiments.throughput.study` times, one closure a case.

Every step is forward, backward and a fused AdamW update; "regular" trains on training and
validation sequences together, with this project's fused head.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import inrun_kernels
from inrun import Attributor, Fused, Intervals
from inrun.attributor import Route
from inrun.ghost import Tape, UseTracker
from inrun.methods import FirstOrder
from inrun.models import build
from inrun.rules import Outer
from inrun.train import ConfigError


@dataclass(frozen=True)
class Size:
    """A model and a batch: n training and m validation sequences of t tokens."""

    model: dict[str, Any]
    n: int
    m: int
    t: int


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

CASES: dict[str, Callable[["Bench"], Callable[[], None]]] = {}


def case(name: str):
    """Decorator: `function(bench) -> step`, a closure that takes one training step."""

    def add(function):
        CASES[name] = function
        return function

    return add


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
        if name not in CASES:
            raise ConfigError(f"unknown case {name!r}; choose from {', '.join(CASES)}")
        return CASES[name](self)

    def compiled(self) -> "Bench":
        """The same bench with its model under torch.compile."""
        twin = Bench(self.name, self.precision)
        twin.model.compile(fullgraph=True)
        return twin

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def loss(self, rows: Tensor, reduction_tokens: int | None = None) -> Tensor:
        with self.autocast():
            return self.model.loss(rows[:, :-1], rows[:, 1:]) / (
                reduction_tokens or rows[:, 1:].numel()
            )

    def head(self, fused: bool) -> None:
        self.model.config = replace(self.model.config, fused_head=fused)

    def plain(self, rows: Tensor, fused: bool) -> Callable[[], None]:
        def step():
            self.head(fused)
            self.loss(rows).backward()
            self.finish()

        return step

    def valued(
        self, method, targets: int = 1, route: str | Route = "fused", refresh: int = 1
    ) -> Callable[[], None]:
        if self.size.m < targets:
            raise ConfigError(
                f"{targets} targets need as many validation sequences; this size has {self.size.m}"
            )
        parts = self.val.chunk(targets)
        closures = {f"val{i}": lambda part=part: self.loss(part) for i, part in enumerate(parts)}
        off = Intervals(refresh=refresh, ledger=0, balance=0)
        attr = Attributor(self.model, self.optimizer, closures, method, route=route, intervals=off)
        forward = (lambda: self.loss(self.train)) if attr.options.runs_again else None

        def step():
            self.head(True)
            with attr.batch(range(self.size.n), forward=forward):
                self.loss(self.train).backward()
            self.finish()

        return step

    def finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def per_sample_loop(
        self, direction: Callable[[list[Tensor], list[Tensor]], list[Tensor]]
    ) -> Callable[[], None]:
        """One backward per training sample; each gradient is kept and dotted with
        `direction(parameters, G)` at the end.
        """

        def step():
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


def _plain_case(name: str, rows: str, fused: bool) -> None:
    case(name)(lambda b: b.plain(getattr(b, rows), fused))


def _valued_case(name: str, method, **options) -> None:
    case(name)(lambda b: b.valued(method, **options))


_plain_case("regular", "both", fused=True)
_plain_case("regular_train_only", "train", fused=True)
_plain_case("stock", "both", fused=False)
_plain_case("stock_train_only", "train", fused=False)
case("regular_compiled")(lambda b: (twin := b.compiled()).plain(twin.both, fused=True))
case("first_order_compiled")(lambda b: b.compiled().valued("first_order", route="compiled"))
_valued_case("first_order", "first_order")
_valued_case("first_order_sgd_formula", FirstOrder(update="sgd"))
_valued_case("first_order_4_targets", "first_order", targets=4)
_valued_case("first_order_16_targets", "first_order", targets=16)
_valued_case("first_order_refresh_4", "first_order", refresh=4)
_valued_case("second_order", "second_order", route=Fused(memory=1 << 40))
_valued_case("second_order_replay", "second_order", route="replay")
_valued_case("path", "path", route=Fused(memory=1 << 40))
_valued_case("path_tape", "path", route=Fused(memory=0))
_valued_case("path_replay", "path", route="replay")


@case("direct_first_order")
def _(b: Bench):
    """Per-sample gradients written out, dotted with the validation gradient."""
    return b.per_sample_loop(lambda parameters, G: torch.autograd.grad(b.loss(b.val), parameters))


@case("direct_second_order")
def _(b: Bench):
    """The same with the paper's second-order direction, by double backward."""

    def direction(parameters, G):
        b.head(False)
        with sdpa_kernel(SDPBackend.MATH):
            first = torch.autograd.grad(b.loss(b.val), parameters, create_graph=True)
            second = torch.autograd.grad(first, parameters, G)
        lr = b.optimizer.param_groups[0]["lr"]
        return [lr * g.detach() - 0.5 * lr * lr * h for g, h in zip(first, second)]

    return b.per_sample_loop(direction)


@case("vmap")
def _(b: Bench):
    """torch.func.vmap(grad): all per-sample gradients at once."""
    if b.precision == "bf16":
        raise ConfigError(
            "torch's vmap(grad) fails under bf16 autocast on a CPU; leave the case vmap out of bf16"
        )

    def step():
        b.head(False)
        named = dict(b.model.named_parameters())
        V = torch.autograd.grad(b.loss(b.val), list(named.values()))

        def one(parameters, row):
            logits = functional_call(b.model, parameters, (row[None, :-1],))
            return F.cross_entropy(logits[0], row[1:], reduction="sum") / b.train[:, 1:].numel()

        with sdpa_kernel(SDPBackend.MATH):
            per_sample = vmap(grad(one), (None, 0))(
                {name: p.detach() for name, p in named.items()}, b.train
            )
        for (name, p), v in zip(named.items(), V):
            per_sample[name].flatten(1) @ v.flatten()
            p.grad = per_sample[name].sum(0)
        b.finish()

    return step


@case("pairwise_ghost")
def _(b: Bench):
    """The paper's ghost dot product: one backward of training and validation sequences together,
    token Grams of every pair. Linear layers and head only.
    """

    def step():
        b.head(False)
        n, rows = b.size.n, len(b.both)
        named = dict(b.model.named_parameters())
        tape = Tape(rows)
        with UseTracker(named, list(b.model.buffers()), tape):
            b.loss(b.both).backward()
        for _, factor in tape.entries:
            if isinstance(factor, Outer):
                inrun_kernels.pairwise_dots(factor.a[:n], factor.b[:n], factor.a[n:], factor.b[n:])
        b.finish()

    return step


@case("opacus")
def _(b: Bench):
    """opacus' GradSampleModule on the same model with whole logits: per-sample gradients in the
    backward, dotted with the validation gradient.
    """
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError as error:
        raise ConfigError(
            "the case opacus needs the package: pip install -e '.[bench]', or leave the case out"
        ) from error

    def step():
        b.head(False)
        parameters = list(b.model.parameters())
        V = torch.autograd.grad(b.loss(b.val), parameters)
        wrapped = GradSampleModule(b.model, loss_reduction="sum")
        tokens = b.train[:, 1:]
        with b.autocast():
            logits = wrapped(b.train[:, :-1])
        (
            F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="sum")
            / tokens.numel()
        ).backward()
        for p, v in zip(parameters, V):
            if torch.is_tensor(p.grad_sample):
                p.grad_sample.flatten(1) @ v.flatten().to(p.grad_sample.dtype)
            p.grad_sample = None
        wrapped.remove_hooks()
        wrapped.to_standard_module()
        b.finish()

    return step
