"""A parameter in an elementwise operation, broadcast over samples (a gain, an offset, positions of
shape [t, d] or [1, t, d]).

One rule serves all of them: expand the argument over the samples where it is used, and
differentiate that one operation.
"""

import torch
from torch import Tensor

from inrun.rules.factors import Aligned, Dense, Factor, by_sample, wide
from inrun.rules.masked import masked
from inrun.rules.registry import Call, in_place, offsets, rule

_NAMES = [
    "add",
    "sub",
    "mul",
    "div",
    "true_divide",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "lerp",
    "addcmul",
    "where",
    "rsub",
]
_DUNDERS = [
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
    "__rdiv__",
    "__div__",
]
_OPERATIONS = {
    getattr(space, name)
    for space in (torch, torch.Tensor)
    for name in _NAMES
    if hasattr(space, name)
}
_OPERATIONS |= {getattr(torch.Tensor, name) for name in _DUNDERS if hasattr(torch.Tensor, name)}


_OFFSETS = ["add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__"]
offsets(*(operation for operation in _OPERATIONS if operation.__name__ in _OFFSETS))


@rule(*_OPERATIONS)
def elementwise(n: int, b: Tensor, call: Call) -> Factor:
    y = call.leaves[call.where].detach()
    if b.dim() == 0:
        return masked(n, b, call)
    if y.dim() == b.dim() and y.shape[0] == b.shape[0] and n > 1:
        return Aligned(_derivative(b, call, call.leaves, y), n)
    # [n * r, ...] -> [n, r, ...], so that the samples have an axis of their own that the argument
    # can be expanded over
    leaves = [
        by_sample(leaf, n) if leaf.dim() == b.dim() and leaf.shape[0] == b.shape[0] else leaf
        for leaf in call.leaves
    ]
    rows = y.reshape((1,) * (b.dim() + 1 - y.dim()) + y.shape).expand(
        n, *(1,) * (b.dim() - y.dim()), *y.shape
    )
    return Dense(_derivative(by_sample(b, n), call, leaves, rows).reshape(n, *y.shape))


def _derivative(b: Tensor, call: Call, leaves: list[Tensor], y: Tensor) -> Tensor:
    with torch.enable_grad():
        y = wide(y.contiguous()).requires_grad_()
        leaves = [leaf.detach() for leaf in leaves]
        leaves[call.where] = y
        out = call(leaves)
    (g,) = torch.autograd.grad(out, y, b.to(out.dtype))
    return g


for _name, _like in (("add", torch.Tensor.add), ("sub", torch.Tensor.sub)):
    for _operation in (getattr(torch.Tensor, f"{_name}_"), getattr(torch.Tensor, f"__i{_name}__")):
        in_place(_operation, like=_like)
        offsets(_operation)
