"""Mistakes in what an optimizer does with a gradient."""

import torch

from inrun.updates.adam import AdamUpdate
from inrun.updates.base import Update
from inrun.updates.lion import LionUpdate
from inrun.updates.sgd import SGDUpdate
from tests.support.mutants.base import exchange, mutant, wrap


@mutant("the frozen slope instead of the secant", "AdamW, secant", "AdamW, path")
def _(patch):
    def pull_back(original, self, method, name, cotangent, lo=0.0, hi=1.0, at=None, missing=None):
        return (hi - lo) * self.rules(method)[name].frozen_slope() * cotangent

    wrap(patch, "Step.pull_back", pull_back)


@mutant("the tangent at G instead of the secant", "AdamW, secant")
def _(patch):
    wrap(
        patch,
        "Update.secant",
        lambda original, self, g, lo=0.0, hi=1.0: (
            (hi - lo) * self.vjp(g, torch.ones_like(g)).nan_to_num()
        ),
    )
    exchange(patch, "AdamUpdate.secant", Update.secant)


@mutant("elements without state get the plain secant", "AdamW, path", "Lion, path")
def _(patch):
    wrap(patch, "RoughElements.smoothed", lambda original, self, V, *rest: V)


@mutant("only the first block of a large tensor is worked on", "a large matrix")
def _(patch):
    def blockwise(original, function, rule, *tensors):
        out = original(function, rule, *tensors).clone()
        out.view(-1)[1 << 16 :] = 0
        return out

    wrap(patch, "step.blockwise", blockwise)


@mutant("coalition slopes for all elements", "AdamW, path")
def _(patch):
    exchange(patch, "AdamUpdate.rough_everywhere", True)
    wrap(
        patch,
        "AdamUpdate.stateless",
        lambda original, self: torch.ones_like(self.second, dtype=torch.bool),
    )
    wrap(
        patch,
        "AdamUpdate.noise_dominated",
        lambda original, self, q: torch.ones_like(q, dtype=torch.bool),
    )


@mutant("the second step takes its state for settled", "AdamW, path")
def _(patch):
    exchange(patch, "AdamUpdate.warming_up", False)


@mutant("coalition slopes from the square of the sum", "AdamW, path", "AdamW, rare tokens, path")
def _(patch):
    wrap(
        patch,
        "Tape.squares",
        lambda original, self, root: (
            None
            if original(self, root) is None
            else sum(self.dense(root, i) for i in range(self.n)) ** 2
        ),
    )


@mutant("coalition slopes for one player too many", "AdamW, path")
def _(patch):
    wrap(
        patch,
        "rough.coalition_slope",
        lambda original, update, g, q, n, lo, hi: original(update, g, q, n + 1, lo, hi),
    )


@mutant("what averaged slopes lack to the step's sum is left out", "AdamW, path", "Lion, path")
def _(patch):
    wrap(patch, "RoughElements.complete", lambda original, self, V, missing: V)


@mutant("what is lacking is spread by the gradient alone", "AdamW, path", "Lion, path")
def _(patch):
    wrap(patch, "RoughElements.common", lambda original, self, g, q, least: g)


@mutant(
    "1 / eps as the slope of elements without state", "AdamW, rare tokens, state before the step"
)
def _(patch):
    def frozen_slope(original, self):
        slope = original(self)
        if self.t == 1:
            return slope
        return torch.where(self.second == 0, self.lr * (1 - self.b1) / self.bias1 / self.eps, slope)

    wrap(patch, "AdamUpdate.frozen_slope", frozen_slope)


@mutant("Adam's bias correction is one step behind", "AdamW, path", "Adam, path")
def _(patch):
    def init(self, *args):
        original(self, *args)
        t = max(self.t - 1, 1)
        self.bias1, self.bias2 = 1.0 - self.b1**t, 1.0 - self.b2**t

    original = AdamUpdate.__init__
    exchange(patch, "AdamUpdate.__init__", init)


@mutant("the frozen slope corrects v by this step's count", "AdamW, state before the step")
def _(patch):
    def frozen_slope(original, self):
        root = (self.second / self.bias2).sqrt()
        return (
            torch.where(
                self.second == 0, 0.0, self.lr * (1 - self.b1) / self.bias1 / (root + self.eps)
            )
            if self.t > 1
            else original(self)
        )

    wrap(patch, "AdamUpdate.frozen_slope", frozen_slope)


@mutant("eps inside Adam's root", "AdamW, path", "AdamW, secant")
def _(patch):
    wrap(
        patch,
        "AdamUpdate.root",
        lambda original, self, g: (original(self, g) ** 2 + self.eps).sqrt() - self.eps,
    )


@mutant("weight decay is forgotten in AdamW's u", "AdamW, path", "AdamW, state before the step")
def _(patch):
    def call(original, self, g):
        return original(self, g) - (
            self.lr * self.weight_decay * self.weight if self.decoupled else 0.0
        )

    wrap(patch, "AdamUpdate.__call__", call)


@mutant("Adam's decay inside the gradient is taken for AdamW's", "Adam, path", "Adam, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.decoupled = True

    original = AdamUpdate.__init__
    exchange(patch, "AdamUpdate.__init__", init)


@mutant("amsgrad is ignored", "AMSGrad, path", "AMSGrad, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.amsgrad = False

    original = AdamUpdate.__init__
    exchange(patch, "AdamUpdate.__init__", init)


@mutant(
    "adaptive optimizers are valued as SGD",
    "AdamW, path",
    "Adam, secant",
    seen="the paper's own experiments",
)
def _(patch):
    wrap(patch, "Step.rules", lambda original, self, method: self.plain)


@mutant(
    "weight decay is forgotten in SGD's u",
    "SGD with decay, path",
    "game: momentum with decay, second order",
)
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.weight_decay = 0.0

    original = SGDUpdate.__init__
    exchange(patch, "SGDUpdate.__init__", init)


@mutant("dampening is ignored", "dampened momentum, path", "dampened momentum, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.keep = 1.0

    original = SGDUpdate.__init__
    exchange(patch, "SGDUpdate.__init__", init)


@mutant("Nesterov is taken for plain momentum", "Nesterov, path", "Nesterov, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.nesterov = False

    original = SGDUpdate.__init__
    exchange(patch, "SGDUpdate.__init__", init)


@mutant(
    "momentum's buffer is forgotten", "momentum, path", "game: momentum with decay, second order"
)
def _(patch):
    def call(original, self, g):
        return original(self, g) - (
            self.lr * self.momentum * self.buffer if self.buffer is not None else 0.0
        )

    wrap(patch, "SGDUpdate.__call__", call)


@mutant("Lion's sign is taken of the gradient alone", "Lion, path", "Lion, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.first = torch.zeros_like(self.first)

    original = LionUpdate.__init__
    exchange(patch, "LionUpdate.__init__", init)
