"""Mistakes in the rules of normalisations and convolutions, and frozen parameters."""

import torch.nn.functional as F

from inrun.rules import OPERATIONS
from inrun.rules.factors import Dense
from tests.support.mutants.base import exchange_rule, mutant, wrap


@mutant("gain and offset of LayerNorm are swapped", "LayerNorm")
def _(patch):
    gain, offset = (
        OPERATIONS[F.layer_norm].arguments["weight"],
        OPERATIONS[F.layer_norm].arguments["bias"],
    )
    exchange_rule(patch, F.layer_norm, "weight", offset)
    exchange_rule(patch, F.layer_norm, "bias", gain)


@mutant(
    "LayerNorm's gain sees the input before normalisation", "LayerNorm", "LayerNorm over two axes"
)
def _(patch):
    def rule(n, b, input, normalized_shape, weight=None, bias=None, eps=1e-5):
        return Dense((b * input).reshape(n, -1, *weight.shape).sum(1))

    exchange_rule(patch, F.layer_norm, "weight", rule)


@mutant("GroupNorm normalises all channels together", "GroupNorm")
def _(patch):
    original = OPERATIONS[F.group_norm].arguments["weight"]
    exchange_rule(
        patch,
        F.group_norm,
        "weight",
        lambda n, b, input, num_groups, **rest: original(n, b, input, 1, **rest),
    )


@mutant("RMSNorm subtracts the mean", "RMSNorm")
def _(patch):
    def rule(n, b, input, normalized_shape, weight=None, eps=None):
        return Dense(
            (b * F.layer_norm(input, normalized_shape)).reshape(n, -1, *weight.shape).sum(1)
        )

    exchange_rule(patch, F.rms_norm, "weight", rule)


@mutant(
    "a convolution is contracted over the wrong axis",
    "convolution 2d, C k k = O",
    "convolution 1d",
    seen="GhostSuite",
)
def _(patch):
    def weight(original, n, b, x, w, *options):
        g = original(n, b, x, w, *options).g
        return Dense(g.flatten(3).transpose(2, 3).reshape(g.shape))

    wrap(patch, "conv.filter_gradients", weight)


@mutant(
    "input and output channels of a convolution are swapped",
    "convolution 2d, C k k = O",
    seen="GhostSuite",
)
def _(patch):
    def weight(original, n, b, x, w, *options):
        g = original(n, b, x, w, *options).g
        return Dense(g.flatten(2).transpose(1, 2).reshape(g.shape))

    wrap(patch, "conv.filter_gradients", weight)


@mutant(
    "groups of a convolution are ignored",
    "convolution 2d, groups",
    "convolution 3d",
    seen="GhostSuite (refuses them)",
)
def _(patch):
    def weight(original, n, b, x, w, stride, padding, dilation, groups):
        each = x.shape[1] // groups
        return original(
            n,
            b,
            x[:, :each].repeat(1, groups, *(1,) * (x.dim() - 2)),
            w,
            stride,
            padding,
            dilation,
            groups,
        )

    wrap(patch, "conv.filter_gradients", weight)


@mutant("dilation of a convolution is ignored", "convolution 1d", "convolution 2d")
def _(patch):
    def weight(original, n, b, x, w, stride, padding, dilation, groups):
        return original(
            n,
            b,
            x,
            w,
            stride,
            padding,
            1 if isinstance(dilation, int) else (1,) * len(dilation),
            groups,
        )

    wrap(patch, "conv.filter_gradients", weight)


@mutant("stride of a convolution is ignored", "convolution 1d", "convolution 2d")
def _(patch):
    def weight(original, n, b, x, w, stride, padding, dilation, groups):
        return original(
            n,
            b,
            x,
            w,
            1 if isinstance(stride, int) else (1,) * len(stride),
            padding,
            dilation,
            groups,
        )

    wrap(patch, "conv.filter_gradients", weight)


@mutant(
    "a convolution's bias is summed over all axes but the last",
    "convolution 2d, width = O",
    seen="GhostSuite",
)
def _(patch):
    exchange_rule(
        patch,
        F.conv2d,
        "bias",
        lambda n, b, input, weight, bias, *rest: Dense(b.flatten(1, -2).sum(1)),
    )


@mutant(
    "frozen parameters are switched on",
    "frozen first layer",
    "LoRA beside a frozen layer",
    seen="GhostSuite",
)
def _(patch):
    def track(original, self, model, params):
        model.requires_grad_(True)
        return original(self, model, params)

    wrap(patch, "TrackedParameters.track", track)
