"""Where a tensor without samples came from: a parameter, or a function of parameters alone.

A weight may pass through operations before it meets the batch: a transpose, a slice, a
concatenation of query, key and value, positions looked up at ``arange(t)``, an adapter multiplied
out, a mask drawn for a weight. Such a tensor y(w) has no sample axis, and <g_i, V> = <dL_i/dy,
(dy/dw) V>: the direction is pushed forward through the function (jvp), and the rules only ever see
the operation where y meets the samples.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from inrun.ghost.again import Again, Draws, writes_first
from inrun.ghost.arguments import tensors_of
from inrun.ghost.backward import dual_level
from inrun.ghost.errors import Named, uncovered
from inrun.rules import Factor, Operation, Origin
from inrun.rules.factors import in_dtype, real_dot, wide


class NoTangentError(RuntimeError):
    """The operation has neither a forward-mode derivative nor one of its backward."""


class Parameter(Origin):
    """The parameter itself."""

    def __init__(self, name: str, value: Tensor):
        self.roots, self.value, self.dtype = (name,), value, value.dtype

    def jvp(self, root: str, V: Tensor) -> Tensor:
        return V

    def vjp(self, root: str, g: Tensor) -> Tensor:
        return g


class Derived(Origin):
    """``operation(*args)`` of tensors that are parameters, derived or constant.

    Args:
        again: the operation; origins: of each of its tensors, None for a constant.
        value: what came out; `index` picks one of several outputs.
    """

    def __init__(self, again: Again, origins: Sequence[Origin | None], value: Tensor, index: int):
        self.again, self.origins, self.index = again, origins, index
        self.value = value.detach()
        self.roots = tuple(
            dict.fromkeys(root for origin in origins if origin for root in origin.roots)
        )
        made_of = (origin.dtype for origin in origins if origin)
        self.dtype = max(value.dtype, *made_of, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def at_once(self) -> bool:
        """Whether the backward must be over with it: what it is made of saves tensors for that."""
        return any(getattr(origin, "at_once", False) for origin in self.origins)

    def jvp(self, root: str, V: Tensor) -> Tensor:
        """Raises NoTangentError where torch has no derivative for it."""
        pushed = [
            origin.jvp(root, V) if origin and root in origin.roots else None
            for origin in self.origins
        ]
        with self._named():
            return torch.stack(
                [
                    in_dtype(self._push([t if t is None else t[k] for t in pushed]), V.dtype)
                    for k in range(V.shape[0])
                ]
            )

    def _push(self, tangents: list[Tensor | None]) -> Tensor:
        try:
            return self._forward_mode(tangents)
        except NotImplementedError as missing:
            try:
                return self._double_backward(tangents)
            except RuntimeError:
                raise NoTangentError(str(missing)) from missing

    def _forward_mode(self, tangents: list[Tensor | None]) -> Tensor:
        with dual_level():
            leaves = [
                leaf
                if tangent is None
                else fwad.make_dual(leaf, tangent.to(leaf.dtype).expand_as(leaf).contiguous())
                for leaf, tangent in zip(self.again.wide(), tangents)
            ]
            tangent = fwad.unpack_dual(self.again(leaves)[self.index]).tangent
        return torch.zeros_like(self.value) if tangent is None else tangent

    def _double_backward(self, tangents: list[Tensor | None]) -> Tensor:
        """The same as the derivative of the backward, which is linear, in its output gradient."""
        moved = [at for at, tangent in enumerate(tangents) if tangent is not None]
        leaves = self.again.wide()
        with torch.enable_grad():
            for at in moved:
                leaves[at] = leaves[at].clone().requires_grad_()
            out = self.again(leaves)[self.index]
            b = torch.zeros_like(out, requires_grad=True)
            found = torch.autograd.grad(out, [leaves[at] for at in moved], b, create_graph=True)
            terms = [
                (g * tangent.to(g.dtype).expand_as(g)).sum()
                for g, tangent in zip(found, (tangents[at] for at in moved))
                if tangent is not None
            ]
            (tangent,) = torch.autograd.grad(functools.reduce(operator.add, terms), b)
        return tangent

    def vjp(self, root: str, g: Tensor) -> Tensor:
        wanted = [at for at, origin in enumerate(self.origins) if origin and root in origin.roots]
        through = [origin for origin in self.origins if origin and root in origin.roots]
        with self._named(), torch.enable_grad():
            leaves = self.again.wide()
            for at in wanted:
                leaves[at] = leaves[at].clone().requires_grad_()
            out = self.again(leaves)[self.index]
            gradients = torch.autograd.grad(
                out, [leaves[at] for at in wanted], in_dtype(g, out.dtype), allow_unused=True
            )
        parts = [
            origin.vjp(root, torch.zeros_like(leaves[at]) if gradient is None else gradient)
            for at, origin, gradient in zip(wanted, through, gradients)
        ]
        return functools.reduce(operator.add, parts)

    def _named(self) -> Named:
        return Named(self.again.operation, self.roots, self.again.leaves)


def takes_no_data(
    operation: Callable, entry: Operation, args: tuple, leaves: list[Tensor], shared: set[int]
) -> bool:
    """Whether a call is a function of weights alone, although a tensor of the batch goes in: of its
    shape or dtype, or as the place of one row.
    """
    others = [leaf for at, leaf in enumerate(leaves) if at not in shared]
    if entry.likeness:
        return 0 in shared
    if operation is torch.Tensor.__getitem__:
        return 0 in shared and all(leaf.dim() == 0 for leaf in others)
    return entry.places and not any(x.is_floating_point() or x.is_complex() for x in others)


def derive(
    operation: Callable, args: tuple, kwargs: dict, origins: Sequence[Origin | None]
) -> tuple[object, list[tuple[Tensor, Derived | None]]]:
    """Run an operation on parameters, derived tensors and constants.

    Returns what it returns, and each tensor that it made (or wrote to) with its origin, None where
    it is a constant.
    """
    leaves = tensors_of(args, kwargs)
    draws = Draws(leaves)
    again = Again(operation, args, kwargs, draws)
    versions = [leaf._version for leaf in leaves]
    out = operation(*args, **kwargs)
    draws.finished()
    written = [leaf for leaf, version in zip(leaves, versions) if leaf._version != version]
    if written and not writes_first(operation):
        roots = [root for origin in origins if origin for root in origin.roots]
        raise uncovered(operation, roots, "overwrites its argument", leaves)
    made = tensors_of((out,), {})
    found: list[tuple[Tensor, Derived | None]] = []
    for index, tensor in enumerate(made or written):
        untouched = any(tensor is leaf for leaf in leaves) and not any(
            tensor is leaf for leaf in written
        )
        if untouched:  # the operation gave its argument back (.to(same dtype), .contiguous())
            continue
        follows = tensor.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
        found.append((tensor, Derived(again, origins, tensor, index) if follows else None))
    return out, found


def dots_of(origin: Origin, root: str, factor: Factor, V: Tensor, n: int) -> Tensor:
    """``<g_i, V_k>`` [k, n] of one use, V [k, *root's shape].

    The directions are pushed to the use; where torch cannot, each sample's gradient is pulled back.
    """
    try:
        pushed = origin.jvp(root, V)
    except NoTangentError:
        rows = [real_dot(wide(origin.vjp(root, factor.dense(i))), V) for i in range(n)]
        return torch.stack(rows, 1)
    return factor.dots(wide(pushed))
