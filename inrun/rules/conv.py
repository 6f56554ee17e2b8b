"""Convolutions in 1, 2 and 3 dimensions with stride, padding, dilation and groups."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.rules.factors import Dense, Factor, SampleAxisError, by_sample, wide
from inrun.rules.registry import rule

_CONVS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


def _tuple(value, dims: int) -> tuple[int, ...]:
    return (
        (value,) * dims
        if isinstance(value, int)
        else tuple(value) * (dims if len(value) == 1 else 1)
    )


def _patches(x: Tensor, kernel, stride, padding, dilation) -> Tensor:
    """[n, c, *space] -> [n, c, *positions, *kernel] as a view of the padded input: what each output
    position looked at.
    """
    dims = len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        pads = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    else:
        amounts = (0,) * dims if padding == "valid" else _tuple(padding, dims)
        pads = [amount for amount in reversed(amounts) for _ in range(2)]
    x = F.pad(x, pads)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return x


def filter_gradients(
    n: int, b: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups: int
) -> Dense:
    """Per-sample gradients of filters [o,c,*kernel], from x [n * r,c,*space] and b
    [n * r,o,*positions]: r frames a sample.
    """
    dims = weight.dim() - 2
    if x.dim() != dims + 2 or x.shape[0] % n:
        raise SampleAxisError(
            f"a convolution's input of shape {tuple(x.shape)} does not have {n} samples "
            "along axis 0"
        )
    if x.shape[0] > n:
        return _frame_by_frame(n, b, x, weight, stride, padding, dilation, groups)
    kernel = tuple(weight.shape[2:])
    patches = _patches(
        wide(x.to(b.dtype)), kernel, _tuple(stride, dims), padding, _tuple(dilation, dims)
    )
    positions = b.shape[2:].numel()
    patches = patches[(slice(None), slice(None), *(slice(0, size) for size in b.shape[2:]))]
    a = patches.reshape(n, groups, x.shape[1] // groups, positions, -1)
    b = wide(b).reshape(n, groups, -1, positions)
    return Dense(torch.einsum("ngop,ngcpq->ngocq", b, a).reshape(n, *weight.shape))


def _frame_by_frame(n: int, b: Tensor, x: Tensor, weight: Tensor, *options) -> Dense:
    """Frame j of all samples at a time, added up."""
    frames = zip(by_sample(x, n).unbind(1), by_sample(b, n).unbind(1))
    parts = [filter_gradients(n, own, frame, weight, *options).g for frame, own in frames]
    return Dense(torch.stack(parts).sum(0))


def _register(operation, dims: int) -> None:
    @rule(operation, argument="weight")
    def conv_weight(
        n, b, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> Factor:
        return filter_gradients(n, b, input, weight, stride, padding, dilation, groups)

    @rule(operation, argument="bias")
    def conv_bias(
        n, b, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> Factor:
        sums = wide(b).flatten(2).sum(-1)
        return Dense(sums if sums.shape[0] == n else by_sample(sums, n).sum(1))


for _operation, _dims in _CONVS.items():
    _register(_operation, _dims)
