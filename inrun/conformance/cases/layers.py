"""Ways of using a parameter: layers, tables, tied and derived weights, plain tensors, frozen
parts.
"""

from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.cases.common import (
    BLOCK,
    SHORT,
    mlp,
)
from inrun.conformance.cases.layer_parts import frozen_first, image, norm, pair, still_batch_norm
from inrun.conformance.networks import WIDTH
from inrun.conformance.optimizers import adamw, sgd
from inrun.conformance.problem import Case
from inrun.conformance.problems import ONE, regression, text

LAYERS = [
    Case("linear, few tokens", "2 T^2 below the layer's size: the pairwise route", SHORT, sgd()),
    Case(
        "linear, many tokens",
        "2 T^2 above it: the materialised route",
        regression(mlp(3, 4, 3), (7, 3)),
        sgd(),
    ),
    Case(
        "linear, many tokens, one validation sample",
        "the route where batches of one hide a mistake",
        regression(mlp(3, 4, 3), (7, 3), targets=ONE),
        sgd(),
    ),
    Case("linear, no tokens", "inputs [n, i]", regression(mlp(6, 8, 2), (6,)), sgd()),
    Case(
        "linear, no bias",
        "the bias is looked for where there is none",
        regression(mlp(6, 8, 2, False), (6,)),
        sgd(),
    ),
    Case(
        "linear, two token axes", "inputs [n, t, s, i]", regression(mlp(4, 5, 2), (2, 3, 4)), sgd()
    ),
    Case(
        "linear, folded tokens",
        "inputs [n t, i]: tokens taken for samples",
        regression(lambda: net.Folded(nn.Linear(4, 4)), (3, 4)),
        sgd(),
    ),
    Case(
        "Conv1D",
        "Hugging Face's transposed layer through addmm",
        regression(pair(net.Conv1D), (3, WIDTH)),
        sgd(),
    ),
    Case(
        "Conv1D, many tokens",
        "the same on the other route",
        regression(pair(net.Conv1D, 3), (8, 3)),
        sgd(),
    ),
    Case("matrix product", "x @ w has no module", regression(pair(net.Product), (3, WIDTH)), sgd()),
    Case("einsum", "w in an einsum", regression(pair(net.Einsum), (3, WIDTH)), sgd()),
    Case(
        "embedding",
        "rows that occur twice in a sample add up",
        text(nn.Identity, head_bias=True),
        sgd(),
    ),
    Case(
        "embedding, padding row",
        "the padding row takes no gradient, also where it is looked up",
        text(nn.Identity, padding=True, padding_idx=0),
        sgd(),
    ),
    Case(
        "embedding, padding row, tied",
        "the same where the head gives that row a gradient: only then it shows",
        text(lambda: net.Block(WIDTH), padding=True, padding_idx=0, tied=True),
        sgd(),
    ),
    Case(
        "positions [1, T]",
        "a table looked up once for the whole batch has a batch of one (opacus issue 841)",
        text(nn.Identity, positions="row"),
        sgd(),
    ),
    Case("positions [T]", "the same without the axis", text(nn.Identity, positions="flat"), sgd()),
    Case(
        "positions [N, T]",
        "the same with indices per sample",
        text(nn.Identity, positions="batch"),
        sgd(),
    ),
    Case(
        "positions, parameter",
        "a parameter [1, t, d] added",
        text(nn.Identity, positions="parameter"),
        sgd(),
    ),
    Case(
        "positions, slice",
        "the first t rows of a parameter",
        text(nn.Identity, positions="slice"),
        sgd(),
    ),
    Case("LayerNorm", "gain and offset", text(norm(lambda: nn.LayerNorm(WIDTH))), sgd()),
    Case(
        "LayerNorm over two axes",
        "normalised_shape of two axes",
        regression(lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2)), (2, 3, 4)),
        sgd(),
    ),
    Case("RMSNorm", "gain without an offset", text(norm(lambda: nn.RMSNorm(WIDTH))), sgd()),
    Case(
        "RMSNorm, written out",
        "the gain is a product, as in Llama",
        text(norm(lambda: net.RMSGain(WIDTH))),
        sgd(),
    ),
    Case(
        "GroupNorm",
        "per channel, after a convolution",
        regression(
            image(lambda: nn.Conv2d(2, 4, 2), lambda: nn.GroupNorm(2, 4), nn.Tanh, out=36),
            (2, 4, 4),
        ),
        sgd(),
    ),
    Case(
        "InstanceNorm",
        "per channel and sample",
        regression(
            image(
                lambda: nn.Conv1d(2, 4, 2),
                lambda: nn.InstanceNorm1d(4, affine=True),
                nn.Tanh,
                out=20,
            ),
            (2, 6),
        ),
        sgd(),
    ),
    Case(
        "BatchNorm, statistics frozen",
        "with its statistics frozen it is a gain and an offset",
        regression(still_batch_norm, (3, 5)),
        sgd(),
    ),
    Case(
        "convolution 1d",
        "stride, padding, dilation, groups",
        regression(
            image(
                lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
                nn.Tanh,
                lambda: nn.Conv1d(6, 4, 2),
                out=16,
            ),
            (4, 9),
        ),
        sgd(),
    ),
    Case(
        "convolution 1d, padding by word",
        "padding='same'",
        regression(
            image(lambda: nn.Conv1d(2, 3, 3, padding="same", dilation=2), nn.Tanh, out=18), (2, 6)
        ),
        sgd(),
    ),
    Case(
        "convolution 2d",
        "stride, padding and dilation that differ by axis",
        regression(
            image(
                lambda: nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
                nn.Tanh,
                lambda: nn.Conv2d(4, 3, 2),
                out=24,
            ),
            (2, 5, 5),
        ),
        sgd(),
    ),
    Case(
        "convolution 2d, C k k = O",
        "shapes that agree by chance: a contraction over the wrong axis goes unnoticed",
        regression(image(lambda: nn.Conv2d(2, 8, 2, bias=False), nn.Tanh, out=72), (2, 4, 4)),
        sgd(),
    ),
    Case(
        "convolution 2d, width = O",
        "a bias summed over the wrong axes goes unnoticed",
        regression(image(lambda: nn.Conv2d(2, 4, 3, padding=1), nn.Tanh, out=64), (2, 4, 4)),
        sgd(),
    ),
    Case(
        "convolution 2d, groups",
        "grouped and depthwise",
        regression(
            image(
                lambda: nn.Conv2d(4, 8, 2, groups=4),
                nn.Tanh,
                lambda: nn.Conv2d(8, 6, 2, groups=2),
                out=24,
            ),
            (4, 4, 4),
        ),
        sgd(),
    ),
    Case(
        "convolution 3d",
        "three axes, stride and groups",
        regression(
            image(
                lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, groups=2), nn.Tanh, out=160
            ),
            (2, 3, 3, 4),
        ),
        sgd(),
    ),
    Case(
        "tied weights",
        "the head's use overwrites the embedding's; cross terms are lost",
        text(nn.Identity, tied=True),
        sgd(),
    ),
    Case(
        "a layer used three times",
        "uses with different numbers of tokens add up",
        regression(lambda: net.Twice(4), (3, 4)),
        sgd(),
    ),
    Case(
        "plain parameters",
        "gains, offsets, a scalar, lerp: no module to hook",
        regression(lambda: net.Gains(4), (3, 4)),
        sgd(),
    ),
    Case(
        "class token",
        "a parameter expanded over the batch",
        regression(lambda: net.ClassToken(4), (3, 4)),
        sgd(),
    ),
    Case(
        "LoRA beside a frozen layer",
        "the base must stay frozen and without gradient",
        text(lambda: net.LoRA(WIDTH, False)),
        adamw(),
    ),
    Case(
        "LoRA multiplied in",
        "a weight that is a function of parameters",
        text(lambda: net.LoRA(WIDTH, True)),
        sgd(),
    ),
    Case(
        "frozen first layer",
        "attaching switched its gradient on, and it moved",
        regression(frozen_first, (2, WIDTH)),
        adamw(),
        steps=2,
    ),
    Case("transformer block", "attention, norms, residuals, tied head", BLOCK, sgd()),
    Case(
        "transformer block of Conv1D",
        "the same from Hugging Face's layers",
        text(lambda: net.Block(WIDTH, conv1d=True), positions="row"),
        sgd(),
    ),
    Case(
        "fused attention",
        "scaled_dot_product_attention",
        text(lambda: net.Block(WIDTH, fused=True)),
        sgd(),
    ),
    Case(
        "activation checkpointing",
        "the forward is run again inside the backward",
        text(lambda: net.Block(WIDTH, checkpointed=True)),
        sgd(),
        micro=(4, 2),
    ),
]
