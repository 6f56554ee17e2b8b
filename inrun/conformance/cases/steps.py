"""What makes up a step: losses and labels, targets, tokens, micro-batches, clipping, schedules, groups, traces left behind."""

import torch
from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.cases.common import (
    BLOCK,
    EXPERTS,
    FIRST,
    PATH,
    RAGGED,
    SECOND,
    SHORT,
)
from inrun.conformance.networks import WIDTH
from inrun.conformance.optimizers import adamw, sgd, two_groups
from inrun.conformance.problem import Case, Formula
from inrun.conformance.problems import ONE, head_loss, mean_token_loss, regression, text

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
