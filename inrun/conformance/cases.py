"""The cases. Each says what an engine that fails it gets wrong; many of these mistakes are in public code.

Weights are small and learning rates large, so that second-order terms and the curvature of adaptive updates are a visible part of every value.
"""

import torch
from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.networks import WIDTH
from inrun.conformance.optimizers import adam, adamw, lion, sgd, two_groups
from inrun.conformance.problem import Case, Formula
from inrun.conformance.problems import ONE, SEVERAL, head_loss, mean_token_loss, regression, text

FIRST = Formula()
CURRENT = Formula(state="current")
SECOND = Formula(kind="second_order")
PATH = Formula(kind="path")
PAPER = Formula(update="sgd")
PAPER_SECOND = Formula(kind="second_order", update="sgd")


def _mlp(i: int, hidden: int, o: int, bias: bool = True):
    return lambda: nn.Sequential(nn.Linear(i, hidden, bias), nn.Tanh(), nn.Linear(hidden, o, bias))


def _pair(layer, d: int = WIDTH):
    return lambda: nn.Sequential(layer(d, d + 2), nn.Tanh(), layer(d + 2, d))


def _image(*layers, out: int):
    return lambda: nn.Sequential(*(build() for build in layers), nn.Flatten(), nn.Linear(out, 3))


def _norm(build):
    return lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), build(), nn.Tanh())


def _frozen_first():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    model[0].requires_grad_(False)
    return model


def _still_batch_norm():
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(3)
    model[1].running_mean.normal_(generator=generator)
    model[1].running_var.uniform_(0.5, 2.0, generator=generator)
    model[1].eval()
    return model


SHORT = regression(_mlp(6, 8, 6), (2, 6))
BLOCK = text(lambda: net.Block(WIDTH), positions="row", tied=True)
RAGGED = text(lambda: net.Block(WIDTH), positions="flat", ragged=True, targets={"val": 3, "one": 1})
LINEAR = regression(lambda: nn.Linear(5, 2), (5,), n=5)
EXPERTS = regression(lambda: net.Experts(WIDTH), (3, WIDTH), targets={"val": 1, "other": 4}, together=True)

LAYERS = [
    Case("linear, few tokens", "2 T^2 below the layer's size: the pairwise route", SHORT, sgd()),
    Case("linear, many tokens", "2 T^2 above it: the materialised route", regression(_mlp(3, 4, 3), (7, 3)), sgd()),
    Case(
        "linear, many tokens, one validation sample",
        "the route where batches of one hide a mistake",
        regression(_mlp(3, 4, 3), (7, 3), targets=ONE),
        sgd(),
    ),
    Case("linear, no tokens", "inputs [n, i]", regression(_mlp(6, 8, 2), (6,)), sgd()),
    Case(
        "linear, no bias", "the bias is looked for where there is none", regression(_mlp(6, 8, 2, False), (6,)), sgd()
    ),
    Case("linear, two token axes", "inputs [n, t, s, i]", regression(_mlp(4, 5, 2), (2, 3, 4)), sgd()),
    Case(
        "linear, folded tokens",
        "inputs [n t, i]: tokens taken for samples",
        regression(lambda: net.Folded(nn.Linear(4, 4)), (3, 4)),
        sgd(),
    ),
    Case("Conv1D", "Hugging Face's transposed layer through addmm", regression(_pair(net.Conv1D), (3, WIDTH)), sgd()),
    Case("Conv1D, many tokens", "the same on the other route", regression(_pair(net.Conv1D, 3), (8, 3)), sgd()),
    Case("matrix product", "x @ w has no module", regression(_pair(net.Product), (3, WIDTH)), sgd()),
    Case("einsum", "w in an einsum", regression(_pair(net.Einsum), (3, WIDTH)), sgd()),
    Case("embedding", "rows that occur twice in a sample add up", text(nn.Identity, head_bias=True), sgd()),
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
    Case("positions [N, T]", "the same with indices per sample", text(nn.Identity, positions="batch"), sgd()),
    Case("positions, parameter", "a parameter [1, t, d] added", text(nn.Identity, positions="parameter"), sgd()),
    Case("positions, slice", "the first t rows of a parameter", text(nn.Identity, positions="slice"), sgd()),
    Case("LayerNorm", "gain and offset", text(_norm(lambda: nn.LayerNorm(WIDTH))), sgd()),
    Case(
        "LayerNorm over two axes",
        "normalised_shape of two axes",
        regression(lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2)), (2, 3, 4)),
        sgd(),
    ),
    Case("RMSNorm", "gain without an offset", text(_norm(lambda: nn.RMSNorm(WIDTH))), sgd()),
    Case("RMSNorm, written out", "the gain is a product, as in Llama", text(_norm(lambda: net.RMSGain(WIDTH))), sgd()),
    Case(
        "GroupNorm",
        "per channel, after a convolution",
        regression(_image(lambda: nn.Conv2d(2, 4, 2), lambda: nn.GroupNorm(2, 4), nn.Tanh, out=36), (2, 4, 4)),
        sgd(),
    ),
    Case(
        "InstanceNorm",
        "per channel and sample",
        regression(
            _image(lambda: nn.Conv1d(2, 4, 2), lambda: nn.InstanceNorm1d(4, affine=True), nn.Tanh, out=20), (2, 6)
        ),
        sgd(),
    ),
    Case(
        "BatchNorm, statistics frozen",
        "with its statistics frozen it is a gain and an offset",
        regression(_still_batch_norm, (3, 5)),
        sgd(),
    ),
    Case(
        "convolution 1d",
        "stride, padding, dilation, groups",
        regression(
            _image(
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
        regression(_image(lambda: nn.Conv1d(2, 3, 3, padding="same", dilation=2), nn.Tanh, out=18), (2, 6)),
        sgd(),
    ),
    Case(
        "convolution 2d",
        "stride, padding and dilation that differ by axis",
        regression(
            _image(
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
        regression(_image(lambda: nn.Conv2d(2, 8, 2, bias=False), nn.Tanh, out=72), (2, 4, 4)),
        sgd(),
    ),
    Case(
        "convolution 2d, width = O",
        "a bias summed over the wrong axes goes unnoticed",
        regression(_image(lambda: nn.Conv2d(2, 4, 3, padding=1), nn.Tanh, out=64), (2, 4, 4)),
        sgd(),
    ),
    Case(
        "convolution 2d, groups",
        "grouped and depthwise",
        regression(
            _image(lambda: nn.Conv2d(4, 8, 2, groups=4), nn.Tanh, lambda: nn.Conv2d(8, 6, 2, groups=2), out=24),
            (4, 4, 4),
        ),
        sgd(),
    ),
    Case(
        "convolution 3d",
        "three axes, stride and groups",
        regression(
            _image(lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, groups=2), nn.Tanh, out=160), (2, 3, 3, 4)
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
    Case("class token", "a parameter expanded over the batch", regression(lambda: net.ClassToken(4), (3, 4)), sgd()),
    Case(
        "LoRA beside a frozen layer",
        "the base must stay frozen and without gradient",
        text(lambda: net.LoRA(WIDTH, False)),
        adamw(),
    ),
    Case("LoRA multiplied in", "a weight that is a function of parameters", text(lambda: net.LoRA(WIDTH, True)), sgd()),
    Case(
        "frozen first layer",
        "attaching switched its gradient on, and it moved",
        regression(_frozen_first, (2, WIDTH)),
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
    Case("fused attention", "scaled_dot_product_attention", text(lambda: net.Block(WIDTH, fused=True)), sgd()),
    Case(
        "activation checkpointing",
        "the forward is run again inside the backward",
        text(lambda: net.Block(WIDTH, checkpointed=True)),
        sgd(),
        micro=(4, 2),
    ),
]

LOSSES = [
    Case("ignored labels", "unequal numbers of labels, one sample with none: its value is 0", RAGGED, sgd()),
    Case(
        "ignored labels, micro-batches",
        "the mean is over the step's labels, not the micro-batch's",
        RAGGED,
        sgd(),
        micro=(1, 3, 2),
    ),
    Case(
        "mean loss",
        "the loss function's own mean",
        text(nn.Tanh, ragged=True, loss=mean_token_loss),
        sgd(),
        micro=(3, 3),
    ),
    Case(
        "fused head", "head and loss in one operation", text(nn.Tanh, ragged=True, loss=head_loss), sgd(), micro=(3, 3)
    ),
    Case(
        "fused head, tied",
        "its dots are added to the embedding's",
        text(lambda: net.Block(WIDTH), tied=True, loss=head_loss),
        adamw(),
        PATH,
        micro=(4, 2),
        steps=2,
    ),
    Case("one validation sample", "", text(lambda: net.Block(WIDTH), targets=ONE), sgd()),
    Case(
        "three targets",
        "directions of different targets get mixed up",
        text(nn.Tanh, targets={"a": 1, "b": 3, "c": 2}),
        sgd(),
    ),
    Case("tokens", "values of the predicted tokens", RAGGED, sgd(), quantities=("values", "tokens"), micro=(4, 2)),
    Case(
        "tokens, second order", "values of the predicted tokens", RAGGED, sgd(), SECOND, quantities=("values", "tokens")
    ),
    Case("forward route", "one forward-mode pass, no rules", BLOCK, sgd(), Formula(route="forward")),
    Case(
        "forward route, path",
        "the same for a direction that is known late",
        BLOCK,
        sgd(),
        Formula(kind="path", route="forward"),
        micro=(2, 4),
    ),
    Case(
        "dropout",
        "the masks are those of the training pass",
        text(lambda: net.Block(WIDTH, drop=0.4), together=True, quiet=True),
        sgd(),
        steps=2,
        micro=(4, 2),
    ),
    Case(
        "dropout, forward route",
        "the second forward draws the masks of the first",
        text(lambda: net.Block(WIDTH, drop=0.4), together=True, quiet=True),
        sgd(),
        Formula(route="forward"),
        steps=2,
        micro=(4, 2),
    ),
]

STEPS = [
    Case("1 x 6", "no accumulation", BLOCK, sgd(), PATH, steps=2),
    Case("2 x 3", "only the last micro-batch is valued", BLOCK, sgd(), PATH, micro=(3, 3), steps=2),
    Case("3 x 2", "", BLOCK, sgd(), micro=(2, 2, 2), steps=2),
    Case("uneven micro-batches", "", BLOCK, sgd(), SECOND, micro=(1, 3, 2), steps=2),
    Case(
        "second order over micro-batches",
        "G is the step's, not the micro-batch's own",
        SHORT,
        sgd(),
        SECOND,
        micro=(2, 2, 2),
    ),
    Case(
        "a parameter used in one micro-batch only",
        "its samples elsewhere get 0; an unused one is no error",
        EXPERTS,
        adamw(),
        PATH,
        micro=(3, 2, 1),
        steps=3,
        quantities=("values", "drift"),
    ),
    Case("clipping", "values without the clip's factor", BLOCK, sgd(), clip=0.05, micro=(3, 3)),
    Case("clipping, second order", "the factor enters twice", BLOCK, sgd(), SECOND, clip=0.05),
    Case(
        "clipping, AdamW", "the factor hardly changes the step, but the slope", BLOCK, adamw(), PATH, clip=0.05, steps=3
    ),
    Case("schedule", "the learning rate of the step, not of the next", SHORT, sgd(), lr=(1.0, 0.3, 0.7), steps=3),
    Case(
        "schedule, set late",
        "the learning rate changes between backward and step",
        SHORT,
        sgd(),
        lr=(1.0, 0.3, 0.7),
        steps=3,
        late_lr=True,
    ),
    Case(
        "schedule, set late, tokens",
        "",
        RAGGED,
        sgd(),
        lr=(1.0, 0.3),
        steps=2,
        late_lr=True,
        quantities=("values", "tokens"),
    ),
    Case(
        "schedule, set late, forward route",
        "",
        SHORT,
        sgd(),
        Formula(route="forward"),
        lr=(1.0, 0.3),
        steps=2,
        late_lr=True,
    ),
    Case("scalar, forward route", "", regression(lambda: net.Gains(4), (3, 4)), sgd(), Formula(route="forward")),
    Case(
        "parameter groups",
        "a learning rate and a decay per group",
        BLOCK,
        two_groups(torch.optim.AdamW, 0.02),
        PATH,
        steps=2,
        quantities=("values", "drift"),
    ),
    Case(
        "writes to buffers",
        "a target's forward must leave no trace in them",
        text(lambda: net.Counter(WIDTH)),
        sgd(),
        PATH,
        steps=2,
        quantities=("values", "drift"),
    ),
    Case(
        "random targets",
        "a target's forward draws random numbers",
        text(lambda: net.Block(WIDTH, drop=0.4), together=True),
        adamw(),
        PATH,
        steps=2,
        quantities=(),
    ),
]

REST = [
    Case(
        "micro-batches of one",
        "an axis of one sample is taken for no axis",
        regression(lambda: net.Gains(4), (3, 4)),
        adamw(),
        PATH,
        micro=(1,) * 6,
        steps=2,
    ),
    Case(
        "micro-batches of one, class token",
        "",
        regression(lambda: net.ClassToken(4), (3, 4)),
        sgd(),
        PATH,
        micro=(1,) * 6,
    ),
    Case(
        "experts, second order",
        "a target that depends on nothing the batch has moved",
        EXPERTS,
        sgd(),
        SECOND,
        micro=(3, 2, 1),
        steps=2,
    ),
    Case(
        "experts, state before the step",
        "",
        EXPERTS,
        adamw(),
        FIRST,
        micro=(3, 2, 1),
        steps=3,
        quantities=("values", "drift"),
    ),
    Case(
        "three uses, checkpointed, second order",
        "",
        regression(lambda: net.Twice(4), (3, 4)),
        sgd(),
        SECOND,
        micro=(2, 4),
    ),
    Case(
        "tokens, checkpointing",
        "",
        text(lambda: net.Block(WIDTH, checkpointed=True)),
        sgd(),
        quantities=("values", "tokens"),
    ),
    Case(
        "a first step without learning rate",
        "warmup from 0: nothing is worth anything",
        SHORT,
        sgd(),
        lr=(0.0, 1.0),
        steps=2,
    ),
    Case(
        "three targets, second order, AdamW",
        "",
        text(nn.Tanh, targets={"a": 1, "b": 3, "c": 2}),
        adamw(),
        SECOND,
        micro=(3, 3),
        steps=2,
    ),
    Case(
        "a large matrix",
        "work that is done in blocks",
        regression(lambda: nn.Linear(300, 300), (2, 300)),
        adamw(),
        PATH,
        micro=(4, 2),
        steps=2,
        quantities=("values", "drift"),
    ),
    Case(
        "forward route, path, AdamW",
        "elements without state, without per-sample squares",
        SHORT,
        adamw(),
        Formula(kind="path", route="forward"),
        steps=2,
    ),
]

METHODS = [
    Case("second order", "the true Hessian, and the sample itself within G", SHORT, sgd(), SECOND),
    Case(
        "second order, one sample",
        "a batch of one has curvature too",
        regression(_mlp(6, 8, 6), (2, 6), n=1),
        sgd(),
        SECOND,
        micro=(1,),
    ),
    Case("second order, attention", "double backward through attention", BLOCK, sgd(), SECOND),
    Case(
        "second order, fused attention", "", text(lambda: net.Block(WIDTH, fused=True), targets=SEVERAL), sgd(), SECOND
    ),
    Case("second order, checkpointing", "", text(lambda: net.Block(WIDTH, checkpointed=True)), sgd(), SECOND),
    Case(
        "second order, momentum and decay",
        "the middle of the way from u(0) to u(G)",
        SHORT,
        sgd(momentum=0.9, weight_decay=0.1),
        SECOND,
        steps=3,
    ),
    Case("second order, AdamW", "linearised by the secant", SHORT, adamw(), SECOND, steps=3),
    Case("path", "the gradient at the middle of the step, not at its end", SHORT, sgd(), PATH),
    Case("path, 3 nodes", "nodes and segments", SHORT, sgd(), Formula(kind="path", nodes=3)),
    Case(
        "path, 3 Gauss nodes",
        "Gauss-Legendre nodes and weights",
        SHORT,
        adamw(),
        Formula(kind="path", nodes=3, quadrature="gauss"),
        steps=3,
    ),
    Case(
        "game: SGD, second order",
        "the Shapley values themselves, all coalitions, quadratic utility",
        LINEAR,
        sgd(),
        SECOND,
        micro=(5,),
        truth="game",
    ),
    Case("game: SGD, path", "", LINEAR, sgd(), PATH, micro=(2, 3), truth="game", clip=0.5),
    Case(
        "game: Nesterov with decay, path",
        "u(0) is not nothing",
        LINEAR,
        sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
        PATH,
        micro=(5,),
        steps=3,
        truth="game",
    ),
    Case(
        "game: momentum with decay, second order",
        "",
        LINEAR,
        sgd(momentum=0.9, weight_decay=0.1),
        SECOND,
        micro=(5,),
        steps=3,
        truth="game",
    ),
]

_OPTIMIZERS = {
    "SGD with decay": sgd(weight_decay=0.2),
    "momentum": sgd(momentum=0.9, weight_decay=0.1),
    "dampened momentum": sgd(momentum=0.8, dampening=0.3),
    "Nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": adam(),
    "AdamW": adamw(),
    "AMSGrad": adamw(amsgrad=True),
    "Lion": lion(),
}

OPTIMIZERS = [
    Case(
        f"{name}, {words}",
        "cold and warm steps, drift, and the ledger of the last step",
        SHORT
        if name == "Lion"
        else BLOCK,  # a block's key bias has gradient 0 but for rounding, and Lion steps by its sign
        build,
        formula,
        steps=3,
        quantities=("values", "drift", "ledger"),
    )
    for name, build in _OPTIMIZERS.items()
    for words, formula in (
        ("state before the step", FIRST),
        ("secant", CURRENT),
        ("path", PATH),
        ("paper's formula", PAPER),
    )
    if not (name == "Lion" and formula.known_before and formula.update == "auto")
] + [
    Case("AdamW, paper's second order", "eta, not the update's slope", BLOCK, adamw(), PAPER_SECOND, steps=2),
    Case(
        "AdamW, path, micro-batches",
        "",
        RAGGED,
        adamw(),
        PATH,
        micro=(1, 3, 2),
        steps=3,
        quantities=("values", "drift", "ledger"),
    ),
    Case(
        "AdamW, rare tokens, state before the step",
        "1 / eps is not a slope",
        text(nn.Tanh, late=True),
        adamw(),
        FIRST,
        steps=3,
        quantities=("values", "drift"),
    ),
    Case(
        "AdamW, rare tokens, path",
        "rows that appear late have no state",
        text(nn.Tanh, late=True),
        adamw(),
        PATH,
        steps=3,
    ),
    Case(
        "momentum, impulse",
        "the whole response to a gradient",
        SHORT,
        sgd(momentum=0.9),
        Formula(credit="impulse"),
        steps=2,
    ),
    Case(
        "Nesterov, impulse",
        "",
        SHORT,
        sgd(momentum=0.9, nesterov=True),
        Formula(kind="path", credit="impulse"),
        steps=2,
    ),
    Case("AdamW, impulse", "1 - b1 becomes 1", SHORT, adamw(), Formula(kind="path", credit="impulse"), steps=2),
]

#: all of them, in the order of the table
CASES: tuple[Case, ...] = (*LAYERS, *LOSSES, *STEPS, *REST, *METHODS, *OPTIMIZERS)
