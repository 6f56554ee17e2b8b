"""Where a tensor without samples came from: a parameter, or a function of parameters alone.

A weight may pass through operations before it meets the batch: a transpose, a slice, a
concatenation of query, key and value, positions looked up at ``arange(t)``, an adapter multiplied
out. Such a tensor y(w) has no sample axis, and <g_i, V> = <dL_i/dy, (dy/dw) V>: the direction is
pushed forward through the function (jvp), and the rules only ever see the operation where y meets
the samples.
"""

import functools
import operator
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from inrun.ghost.arguments import tensors_of
from inrun.ghost.backward import dual_level
from inrun.rules import Origin


class Parameter(Origin):
    """The parameter itself."""

    def __init__(self, name: str, value: Tensor):
        self.roots, self.value = (name,), value

    def jvp(self, root: str, V: Tensor) -> Tensor:
        return V

    def vjp(self, root: str, g: Tensor) -> Tensor:
        return g


class Derived(Origin):
    """``operation(*args)`` of tensors that are parameters, derived or constant; `index` picks one
    of several outputs.
    """

    def __init__(
        self,
        operation: Callable,
        rebuild: Callable,
        leaves: list[Tensor],
        origins: list[Origin | None],
        value: Tensor,
        index: int | None,
    ):
        self.operation, self.rebuild, self.origins, self.index = operation, rebuild, origins, index
        self.leaves = [leaf.detach() for leaf in leaves]
        self.value = value.detach()
        self.roots = tuple(
            dict.fromkeys(root for origin in origins if origin for root in origin.roots)
        )

    def _call(self, leaves: list[Tensor]) -> Tensor:
        args, kwargs = self.rebuild(leaves)
        out = self.operation(*args, **kwargs)
        return out if self.index is None else tensors_of((out,), {})[self.index]

    def jvp(self, root: str, V: Tensor) -> Tensor:
        pushed = [
            origin.jvp(root, V) if origin and root in origin.roots else None
            for origin in self.origins
        ]
        rows = []
        for k in range(V.shape[0]):
            with dual_level():
                leaves = [
                    leaf
                    if tangents is None
                    else fwad.make_dual(
                        leaf, tangents[k].to(leaf.dtype).expand_as(leaf).contiguous()
                    )
                    for leaf, tangents in zip(self.leaves, pushed)
                ]
                tangent = fwad.unpack_dual(self._call(leaves)).tangent
            rows.append(torch.zeros_like(self.value) if tangent is None else tangent.to(V.dtype))
        return torch.stack(rows)

    def vjp(self, root: str, g: Tensor) -> Tensor:
        wanted = [at for at, origin in enumerate(self.origins) if origin and root in origin.roots]
        through = [origin for origin in self.origins if origin and root in origin.roots]
        with torch.enable_grad():
            leaves = list(self.leaves)
            for at in wanted:
                leaves[at] = leaves[at].clone().requires_grad_()
            gradients = torch.autograd.grad(
                self._call(leaves), [leaves[at] for at in wanted], g.to(self.value.dtype)
            )
        parts = [origin.vjp(root, gradient) for origin, gradient in zip(through, gradients)]
        return functools.reduce(operator.add, parts)
