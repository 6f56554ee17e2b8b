"""What is refused by name: a use of a parameter without a rule, an operation that mixes samples."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.overrides import resolve_name

from inrun.rules.factors import SampleAxisError
from inrun.rules.registry import NoRule

#: the way that works for whatever torch can train
ONE_AT_A_TIME = (
    "Attributor(..., route='whole'), one sample per micro-batch: for each i, `with "
    "attr.batch([ids[i]])` around loss(x[i : i + 1]) / n and its backward, then optimizer.step()"
)

#: ways that need no rule for the operation, said by every refusal of one
WITHOUT_A_RULE = (
    f"Ways that need no rule: {ONE_AT_A_TIME}. Or Attributor(..., route='forward') with "
    "attr.batch(ids, forward=lambda: loss), where torch has forward-mode derivatives and the loss "
    "is one of torch.nn.functional's. Or leave the parameter out of the values by params='<regex "
    "that does not match it>', or add a rule (inrun.rules.rule)."
)

#: why `torch.autograd.grad(create_graph=True)` is refused inside a batch
GRADIENT_IN_LOSS = (
    "torch.autograd.grad(create_graph=True) inside the batch: the loss contains a gradient (a "
    "gradient penalty), and a second backward through it would be added to the samples' parts. "
    f"Take the gradient without a graph; or say {ONE_AT_A_TIME}"
)

#: named already, or nothing that a rule could help
_PASS_ON = (MemoryError, torch.OutOfMemoryError)


class UncoveredUseError(RuntimeError):
    """A trainable parameter is used by an operation that has no rule."""


class MixedSamplesError(RuntimeError):
    """An operation mixes the samples of the batch, so that a sample has no gradient of its own."""


def name_of(operation) -> str:
    """The operation as a user would call it, ``torch.nn.functional.linear``."""
    own = getattr(operation, "_forward_cls", None)
    if own is not None:
        return f"torch.autograd.Function {own.__qualname__}"
    try:
        found = resolve_name(operation)
    except (TypeError, AttributeError):
        found = None
    own = getattr(operation, "__qualname__", None) or getattr(operation, "__name__", None)
    return found or str(own or operation).replace("_VariableFunctionsClass", "torch")


def uncovered(
    operation, roots: Iterable[str], what: str, tensors: Sequence[Tensor | None] = ()
) -> UncoveredUseError:
    """The refusal of one use: parameter, operation, what about it, shapes, and the ways out."""
    names = ", ".join(sorted(set(roots)))
    shapes = ", ".join(str(list(x.shape)) for x in tensors if x is not None)
    return UncoveredUseError(
        f"parameter {names}: the operation {name_of(operation)} "
        + (f"of tensors {shapes} " if shapes else "")
        + f"{what}, so its per-sample gradient is unknown. {WITHOUT_A_RULE}"
    )


def set_by_hand(roots: Iterable[str]) -> UncoveredUseError:
    """The refusal of ``p.grad = g`` inside a batch."""
    return UncoveredUseError(
        f"parameter {', '.join(roots)}: its .grad is set by hand inside the batch, so that nobody "
        "saw which sample it came from; let loss.backward() fill it"
    )


def refuse_mixing(reason: str | None) -> None:
    """Raise MixedSamplesError if there is a reason."""
    if reason:
        raise MixedSamplesError(reason)


class Named:
    """Context in which a failure of a rule, in torch's words, becomes a refusal by name.

    Args:
        operation: whose rule runs.
        roots: names of the parameters that the argument was made of.
        tensors: of which the shapes are said.
    """

    def __init__(self, operation, roots: Iterable[str], tensors: Sequence[Tensor | None] = ()):
        self.operation, self.roots, self.tensors = operation, roots, tensors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if isinstance(error, NoRule):
            raise uncovered(self.operation, self.roots, "has no rule", self.tensors) from None
        if isinstance(error, Exception) and not _is_ours(error):
            self._refuse(error)

    def _refuse(self, error: Exception) -> NoReturn:
        words = str(error).splitlines()
        what = f"could not be differentiated sample by sample ({words[0] if words else error!r})"
        raise uncovered(self.operation, self.roots, what, self.tensors) from error


def _is_ours(error: Exception) -> bool:
    return isinstance(error, _PASS_ON) or type(error).__module__.startswith("inrun.")


def whose_rows(
    operation, roots: Iterable[str], tensor: Tensor, n: int, declared: int | None
) -> SampleAxisError:
    """The refusal of a use of which it is not known whose row is which, and the ways out."""
    names = ", ".join(sorted(set(roots)))
    given = "were" if declared is None else f"and the owners of {declared} rows were"
    if tensor.is_nested:
        return SampleAxisError(
            f"parameter {names}: the operation {name_of(operation)} is given a nested (jagged) "
            "tensor, whose rows are not followed. Concatenate the samples to rows [r, ...] and say "
            "whose each row is, attr.batch(ids, rows=<a sample 0..n-1 per row>), pad them, or use "
            "route='whole' with micro-batches of one sample"
        )
    return SampleAxisError(
        f"parameter {names}: {n} ids {given} given, and at the operation {name_of(operation)} it "
        f"is not known which rows of a tensor of shape {tuple(tensor.shape)} belong to which "
        "sample. Give one id per sample, in the order of axis 0, and keep the samples the leading "
        "axis (batch_first=True), or say whose each row is, attr.batch(ids, rows=<a sample 0..n-1 "
        "per row>). Ways that need neither: route='whole' with micro-batches of one sample, and "
        "route='forward' with attr.batch(ids, forward=lambda: loss)"
    )
