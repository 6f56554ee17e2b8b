"""Cases of losses: reductions, labels, heads."""

from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.cases.common import (
    BLOCK,
    PATH,
    RAGGED,
    SECOND,
)
from inrun.conformance.networks import WIDTH
from inrun.conformance.optimizers import adamw, sgd
from inrun.conformance.problem import Case, Formula
from inrun.conformance.problems import ONE, head_loss, mean_token_loss, text

LOSSES = [
    Case(
        "ignored labels",
        "unequal numbers of labels, one sample with none: its value is 0",
        RAGGED,
        sgd(),
    ),
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
        "fused head",
        "head and loss in one operation",
        text(nn.Tanh, ragged=True, loss=head_loss),
        sgd(),
        micro=(3, 3),
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
    Case(
        "tokens",
        "values of the predicted tokens",
        RAGGED,
        sgd(),
        quantities=("values", "tokens"),
        micro=(4, 2),
    ),
    Case(
        "tokens, second order",
        "values of the predicted tokens",
        RAGGED,
        sgd(),
        SECOND,
        quantities=("values", "tokens"),
    ),
    Case(
        "forward route", "one forward-mode pass, no rules", BLOCK, sgd(), Formula(route="forward")
    ),
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
        "dropout, known late",
        "",
        text(lambda: net.Block(WIDTH, drop=0.4), together=True, quiet=True),
        sgd(),
        PATH,
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
