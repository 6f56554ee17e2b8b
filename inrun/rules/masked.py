"""Operations without a rule of their own: differentiated as a whole, once per sample, with the
output gradients of all other samples zero.

A backward is linear in its output gradient, so this is exact for whatever operation, as long as
each row of the output is known to be a sample's. It costs one backward of the operation per sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inrun.rules.factors import Factor, in_dtype, real_dot, wide
from inrun.rules.layout import Layout
from inrun.rules.registry import Call, NoRule, whatever


@dataclass
class Masked(Factor):
    """Per-sample gradients, formed out of the operation's graph when they are asked for."""

    n: int
    """Samples."""
    b: Tensor
    """Gradient of the output."""
    out: Tensor
    """The output, formed again with a graph."""
    argument: Tensor
    """The leaf of that graph whose gradient is asked for."""
    rows: Layout
    """Whose each row of the output is."""

    def dots(self, V: Tensor) -> Tensor:
        return torch.stack([real_dot(self.dense(i), V) for i in range(self.n)], 1)

    def dense(self, i: int) -> Tensor:
        if not self.out.requires_grad:  # another output depends on the argument, this one does not
            return torch.zeros_like(wide(self.argument.detach()))
        b = self.b if self.n == 1 else only(self.b, self.rows, i)
        (g,) = torch.autograd.grad(
            self.out,
            self.argument,
            in_dtype(b, self.out.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        return torch.zeros_like(wide(self.argument.detach())) if g is None else wide(g)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.b,)

    def finite(self, n: int) -> Tensor:
        return torch.stack([torch.isfinite(self.dense(i)).all() for i in range(n)])


def only(b: Tensor, rows: Layout, i: int) -> Tensor:
    """The tensor with zeros in the rows that are not sample i's."""
    owners, axis = rows.owners, rows.axis
    assert owners is not None
    assert axis is not None
    own = owners.rows(i, b.device)
    kept = torch.zeros_like(b, memory_format=torch.contiguous_format)
    return kept.index_copy_(axis, own, b.index_select(axis, own))


@whatever
def masked(n: int, b: Tensor, call: Call) -> Factor:
    if n > 1 and call.out.axis is None:
        raise NoRule
    leaves = [leaf.detach() for leaf in call.leaves]
    if not getattr(call.operation, "drew", False):  # what is drawn may depend on the dtype
        leaves = [wide(leaf) if is_float(leaf) else leaf for leaf in leaves]
    with torch.enable_grad():
        leaves[call.where] = leaves[call.where].clone().requires_grad_()
        out = call(leaves)
    return Masked(n, b, out, leaves[call.where], call.out)


def is_float(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
