"""Mistakes in the directions of the methods."""

from dataclasses import replace

import torch

from inrun.methods.base import KINDS
from inrun.methods.step import Step
from tests.support.mutants.base import mutant, wrap


def direction(patch, kind, around) -> None:
    registered = KINDS[kind]

    def changed(what, step, target):
        return around(registered.directions, what, step, target)

    patch.setitem(KINDS, kind, registered._replace(directions=changed))


@mutant("values have the printed sign", "linear, few tokens", seen="a re-implementation on MNIST")
def _(patch):
    wrap(
        patch,
        "stack.directions",
        lambda original, *args: {name: -v for name, v in original(*args).items()},
    )


@mutant("no learning rate", "linear, few tokens", seen="GhostSuite")
def _(patch):
    direction(patch, "first_order", lambda original, what, step, target: dict(target.gradient()))


@mutant("the Hessian is the identity", "second order", "second order, attention", seen="GhostSuite")
def _(patch):
    wrap(
        patch,
        "Target.gradient_and_hvp",
        lambda original, self, direction: (original(self, direction)[0], dict(direction)),
    )


@mutant("eta^2 instead of eta^2 / 2", "second order", "game: SGD, second order")
def _(patch):
    wrap(
        patch,
        "Target.gradient_and_hvp",
        lambda original, self, direction: original(
            self, {name: 2 * d for name, d in direction.items()}
        ),
    )


@mutant("first order takes the gradient at w", "momentum, state before the step", "AdamW, secant")
def _(patch):
    wrap(patch, "Step.without_samples", lambda original, self: None)


@mutant("no curvature", "second order")
def _(patch):
    direction(
        patch,
        "second_order",
        lambda original, what, step, target: {
            name: step.pull_back(what, name, g) for name, g in target.gradient().items()
        },
    )


@mutant(
    "second order forgets u(0)",
    "second order, momentum and decay",
    "game: momentum with decay, second order",
)
def _(patch):
    def middle(original, self, method):
        nobody = self.moved(method, 0.0)
        return {
            name: u - (self.weights[name] - nobody[name])
            for name, u in original(self, method).items()
        }

    wrap(patch, "Step.middle", middle)


@mutant(
    "G is the last micro-batch's own", "second order over micro-batches", "uneven micro-batches"
)
def _(patch):
    def view(original, self, gradients, c):
        if gradients is not None:
            last = self.passes.done[-1]
            gradients = {
                name: c * sum(last.record.dense(name, i) for i in range(len(last.ids)))
                for name in gradients
            }
        return original(self, gradients, c)

    wrap(patch, "OpenStep.view", view)


@mutant("path is evaluated at its end", "path", "game: SGD, path")
def _(patch):
    wrap(
        patch,
        "Step.between",
        lambda original, self, method, node, lo, hi: original(self, method, hi, hi, hi),
    )


@mutant("path is evaluated at its start", "path", "game: SGD, path")
def _(patch):
    wrap(
        patch,
        "Step.between",
        lambda original, self, method, node, lo, hi: original(self, method, lo, lo, lo),
    )


@mutant("path is evaluated in the middle of G, not of the way", "AdamW, path")
def _(patch):
    wrap(
        patch,
        "Step.between",
        lambda original, self, method, node, lo, hi: self.moved(method, node),
    )


@mutant("path's Gauss nodes have equal weights", "path, 3 Gauss nodes")
def _(patch):
    def segments(original, nodes, quadrature):
        return [
            (node, k / nodes, (k + 1) / nodes)
            for k, (node, _, _) in enumerate(original(nodes, quadrature))
        ]

    wrap(patch, "path.segments", segments)


@mutant("path starts at w instead of w - u(0)", "game: Nesterov with decay, path", "AdamW, path")
def _(patch):
    def between(original, self, method, *where):
        rules = self.rules(method)
        return {
            name: w + rules[name].zero() if name in rules else w
            for name, w in original(self, method, *where).items()
        }

    wrap(patch, "Step.between", between)


@mutant(
    "parameters without a gradient decay all the same",
    "a parameter used in one micro-batch only",
    "experts, state before the step",
)
def _(patch):
    def everywhere(original, self, *args):
        gradient = {
            name: self.gradient.get(name, torch.zeros_like(w)) for name, w in self.weights.items()
        }
        return original(Step(self.updates, self.plain, self.weights, gradient), *args)

    wrap(patch, "Step.between", everywhere)
    wrap(patch, "Step.without_samples", everywhere)


@mutant("impulse credit is not given", "momentum, impulse", "AdamW, impulse")
def _(patch):
    def directions(original, what, step, target):
        return original(replace(what, credit="immediate"), step, target)

    wrap(patch, "stack.directions", directions)
