"""Formulas and problems that several families of cases share."""

from torch import nn

from inrun.conformance import networks as net
from inrun.conformance.networks import WIDTH
from inrun.conformance.problem import Formula
from inrun.conformance.problems import regression, text

FIRST = Formula()
CURRENT = Formula(state="current")
SECOND = Formula(kind="second_order")
PATH = Formula(kind="path")
PAPER = Formula(update="sgd")
PAPER_SECOND = Formula(kind="second_order", update="sgd")


def mlp(i: int, hidden: int, o: int, bias: bool = True):
    return lambda: nn.Sequential(nn.Linear(i, hidden, bias), nn.Tanh(), nn.Linear(hidden, o, bias))


SHORT = regression(mlp(6, 8, 6), (2, 6))
BLOCK = text(lambda: net.Block(WIDTH), positions="row", tied=True)
RAGGED = text(lambda: net.Block(WIDTH), positions="flat", ragged=True, targets={"val": 3, "one": 1})
LINEAR = regression(lambda: nn.Linear(5, 2), (5,), n=5)
EXPERTS = regression(
    lambda: net.Experts(WIDTH), (3, WIDTH), targets={"val": 1, "other": 4}, together=True
)
