"""The cases that are timed: plain training, this project's methods, and other ways to values."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import inrun_kernels
from experiments.throughput.bench import CASES, Bench
from inrun import Fused
from inrun.config import ConfigError
from inrun.ghost import Tape, UseTracker
from inrun.methods import FirstOrder, Method
from inrun.rules import Outer

case = CASES.register


def _plain_case(name: str, rows: str, fused: bool) -> None:
    case(name)(lambda b: b.plain(getattr(b, rows), fused))


def _valued_case(name: str, method: str | Method, **options: Any) -> None:
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
