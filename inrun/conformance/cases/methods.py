"""Methods and optimizers: curvature, nodes along the step, the game itself, cold and warm states,
drift, ledger, credit.
"""

from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.cases.common import (
    BLOCK,
    CURRENT,
    FIRST,
    LINEAR,
    PAPER,
    PAPER_SECOND,
    PATH,
    RAGGED,
    SECOND,
    SHORT,
    mlp,
)
from inrun.conformance.networks import WIDTH
from inrun.conformance.optimizers import adam, adamw, lion, sgd
from inrun.conformance.problem import Case, Formula
from inrun.conformance.problems import SEVERAL, regression, text

METHODS = [
    Case("second order", "the true Hessian, and the sample itself within G", SHORT, sgd(), SECOND),
    Case(
        "second order, one sample",
        "a batch of one has curvature too",
        regression(mlp(6, 8, 6), (2, 6), n=1),
        sgd(),
        SECOND,
        micro=(1,),
    ),
    Case("second order, attention", "double backward through attention", BLOCK, sgd(), SECOND),
    Case(
        "second order, fused attention",
        "",
        text(lambda: net.Block(WIDTH, fused=True), targets=SEVERAL),
        sgd(),
        SECOND,
    ),
    Case(
        "second order, checkpointing",
        "",
        text(lambda: net.Block(WIDTH, checkpointed=True)),
        sgd(),
        SECOND,
    ),
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
        # a block's key bias has gradient 0 but for rounding, and Lion steps by its sign
        else BLOCK,
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
    Case(
        "AdamW, paper's second order",
        "eta, not the update's slope",
        BLOCK,
        adamw(),
        PAPER_SECOND,
        steps=2,
    ),
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
    Case(
        "AdamW, impulse",
        "1 - b1 becomes 1",
        SHORT,
        adamw(),
        Formula(kind="path", credit="impulse"),
        steps=2,
    ),
]
