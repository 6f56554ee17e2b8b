"""Derivatives by torch: its engine, entered with the current torch-function modes still active, and
the level of forward-mode derivatives.

A mode is suspended inside its own handler, and so would be during the whole of ``loss.backward()``,
which arrives there like any other function; the engine then runs its nodes in the state that it was
entered with. But activation checkpointing runs the forward again inside the backward, and those
operations must be seen (or substituted) as they were the first time. Torch has no public entry to
its engine below the dispatch to modes; this one is what its own `backward` and `grad` call.
"""

import functools
import inspect
import warnings
from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

BACKWARDS = {torch.Tensor.backward, torch.autograd.backward}

_GRAD = inspect.signature(torch.autograd.grad)


def backward(args: tuple, kwargs: dict) -> None:
    """``torch.Tensor.backward`` or ``torch.autograd.backward`` with these arguments."""
    outputs, seeds = backward_roots(args, kwargs)
    given = _given(args, kwargs)
    create_graph = bool(given.get("create_graph"))
    retain_graph = given.get("retain_graph")
    inputs = given.get("inputs")
    _engine_run_backward(
        outputs,
        seeds,
        create_graph if retain_graph is None else retain_graph,
        create_graph,
        () if inputs is None else _as_tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def backward_roots(
    args: tuple, kwargs: dict
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """What a backward starts from, and with which gradients."""
    given = _given(args, kwargs)
    outputs, seeds = _as_tuple(given["tensors"]), given.get("grad_tensors")
    return outputs, _seeds(outputs, (None,) * len(outputs) if seeds is None else _as_tuple(seeds))


def _given(args: tuple, kwargs: dict) -> dict:
    names = ("tensors", "grad_tensors", "retain_graph", "create_graph", "inputs")
    return dict(zip(names, args)) | {
        {"gradient": "grad_tensors", "self": "tensors"}.get(name, name): value
        for name, value in kwargs.items()
    }


def inner_grad(args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with these arguments, as a loss calls it (adversarial examples)."""
    given = _GRAD.bind(*args, **kwargs)
    given.apply_defaults()
    asked = given.arguments
    outputs, inputs = _as_tuple(asked["outputs"]), _as_tuple(asked["inputs"])
    seeds = asked["grad_outputs"]
    seeds = (None,) * len(outputs) if seeds is None else _as_tuple(seeds)
    found = _engine_run_backward(
        outputs,
        _seeds(outputs, seeds),
        bool(asked["retain_graph"]),
        False,
        inputs,
        allow_unreachable=bool(asked["allow_unused"] or asked["materialize_grads"]),
        accumulate_grad=False,
    )
    if not asked["materialize_grads"]:
        return found
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs))


def makes_graph(args: tuple, kwargs: dict) -> bool:
    """Whether ``torch.autograd.grad`` is asked for a graph of the gradient itself, or for a batch
    of gradients.
    """
    given = _GRAD.bind(*args, **kwargs).arguments
    return bool(given.get("create_graph") or given.get("is_grads_batched"))


def grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    seeds: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with allow_unused=True."""
    outputs = tuple(outputs)
    return _engine_run_backward(
        outputs,
        _seeds(outputs, tuple(seeds or (None,) * len(outputs))),
        create_graph,
        create_graph,
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )


def _as_tuple(value) -> tuple:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _seeds(outputs: tuple[Tensor, ...], seeds: tuple) -> tuple[Tensor | None, ...]:
    filled = []
    for output, seed in zip(outputs, seeds, strict=True):
        if seed is None and output.requires_grad:
            if output.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            seed = torch.ones_like(output, memory_format=torch.preserve_format)
        filled.append(seed)
    return tuple(filled)


@functools.cache
def _load_formulas() -> None:
    """Let torch load its forward-mode formulas, which warns of a deprecation of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*torch.jit.script.*", category=DeprecationWarning
        )
        with fwad.dual_level():
            fwad.make_dual(torch.zeros(()), torch.zeros(()))


def dual_level() -> fwad.dual_level:
    """``torch.autograd.forward_ad.dual_level``, without torch's warning at its first use."""
    _load_formulas()
    return fwad.dual_level()
