"""Normalisations with a gain and an offset. One that normalises over the batch has no per-sample
gradient and is refused.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import inrun_kernels
from inrun.rules.factors import Dense, Factor, by_sample, wide
from inrun.rules.linear import offset_dots
from inrun.rules.protocols import Probes
from inrun.rules.registry import any_leading, compiled, refuse, rule


def _reduce(n: int, x: Tensor, shape) -> Tensor:
    """[n * r, ..., *shape] -> [n, *shape], summed over everything between."""
    return wide(by_sample(x, n)).reshape(n, -1, *shape).sum(1)


def _per_channel(n: int, x: Tensor) -> Tensor:
    """[n, c, ...] -> [n, c]."""
    return wide(x).reshape(n, x.shape[1], -1).sum(-1) if x.shape[0] == n else _fold_channels(n, x)


def _fold_channels(n: int, x: Tensor) -> Tensor:
    x = by_sample(x, n)
    return wide(x).reshape(n, x.shape[1], x.shape[2], -1).sum((1, 3))


@rule(F.layer_norm, argument="weight")
def layer_norm_weight(
    n: int, b: Tensor, input, normalized_shape, weight=None, bias=None, eps=1e-5
) -> Factor:
    return Dense(
        _reduce(n, wide(b) * F.layer_norm(wide(input), normalized_shape, eps=eps), weight.shape)
    )


@rule(F.layer_norm, argument="bias")
def layer_norm_bias(
    n: int, b: Tensor, input, normalized_shape, weight=None, bias=None, eps=1e-5
) -> Factor:
    return Dense(_reduce(n, b, bias.shape))


@compiled(F.layer_norm)
def compiled_layer_norm(
    probes: Probes, input, normalized_shape, weight=None, bias=None, eps: float = 1e-5
) -> Tensor:
    found = probes.of(weight)
    if found is None or len(normalized_shape) != 1:
        y = F.layer_norm(input, normalized_shape, weight, bias, eps)
    else:
        y = inrun_kernels.layer_norm(input, weight, bias, *found, eps=eps)
    return offset_dots(probes, y, bias)


@rule(F.rms_norm, argument="weight")
def rms_norm_weight(n: int, b: Tensor, input, normalized_shape, weight=None, eps=None) -> Factor:
    # the default eps is the machine epsilon of the input's own dtype
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return Dense(
        _reduce(n, wide(b) * F.rms_norm(wide(input), normalized_shape, eps=eps), weight.shape)
    )


@compiled(F.rms_norm)
def compiled_rms_norm(
    probes: Probes, input, normalized_shape, weight=None, eps: float | None = None
) -> Tensor | None:
    found = probes.of(weight)
    if found is None or len(normalized_shape) != 1:
        return None
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return inrun_kernels.rms_norm(input, weight, *found, eps=eps)


@rule(F.group_norm, argument="weight")
def group_norm_weight(
    n: int, b: Tensor, input, num_groups, weight=None, bias=None, eps=1e-5
) -> Factor:
    return Dense(_per_channel(n, wide(b) * F.group_norm(wide(input), num_groups, eps=eps)))


@rule(F.group_norm, argument="bias")
def group_norm_bias(
    n: int, b: Tensor, input, num_groups, weight=None, bias=None, eps=1e-5
) -> Factor:
    return Dense(_per_channel(n, b))


@rule(F.instance_norm, argument="weight")
def instance_norm_weight(
    n: int,
    b,
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
) -> Factor:
    mean, var = (None, None) if use_input_stats else (running_mean, running_var)
    normed = F.instance_norm(wide(input), mean, var, use_input_stats=use_input_stats, eps=eps)
    return Dense(_per_channel(n, wide(b) * normed))


@rule(F.instance_norm, argument="bias")
def instance_norm_bias(
    n: int,
    b,
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
) -> Factor:
    return Dense(_per_channel(n, b))


@rule(F.batch_norm, argument="weight")
def frozen_batch_norm_weight(
    n: int,
    b,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Factor:
    return Dense(
        _per_channel(n, wide(b) * F.batch_norm(wide(input), running_mean, running_var, eps=eps))
    )


@rule(F.batch_norm, argument="bias")
def frozen_batch_norm_bias(
    n: int,
    b,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Factor:
    return Dense(_per_channel(n, b))


@refuse(F.batch_norm)
def batch_norm_in_training(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> str | None:
    if not training:
        return None
    return (
        "BatchNorm in training mode normalises every sample by the statistics of its batch, so a "
        "sample has no gradient of its own; freeze the statistics (module.eval()) or use GroupNorm"
    )


any_leading(F.layer_norm, F.rms_norm)
