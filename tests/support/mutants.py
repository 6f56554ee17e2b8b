"""Our engine with one mistake each, for the conformance suite to find.

A mutant patches one function of the engine. Its `cases` are a few that have to catch it (any one
will do); the numbers alone must, with the books switched off. Axes: n train samples, m validation
samples, t tokens, i in, o out, k directions.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from inrun.attributor import Attributor, stack
from inrun.attributor.ledger import Ledger
from inrun.attributor.micro_batches import MicroBatches
from inrun.attributor.parameters import RandomState, TrackedParameters
from inrun.attributor.step import OpenStep
from inrun.ghost import Tape, UseTracker, tape
from inrun.ghost.origin import Derived
from inrun.methods import path as path_module
from inrun.methods import step as step_module
from inrun.methods.base import KINDS
from inrun.methods.step import Step
from inrun.methods.target import Target
from inrun.rules import OPERATIONS, conv, elementwise, embedding, linear
from inrun.rules.factors import Dense, Outer, Rows, by_sample
from inrun.rules.head import HeadFactor
from inrun.updates.adam import AdamUpdate
from inrun.updates.base import Update
from inrun.updates.lion import LionUpdate
from inrun.updates.sgd import PlainSGD, SGDUpdate


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what the engine does wrong, in words.
        cases: names of conformance cases; at least one of them must fail.
        apply: patches the engine with pytest's monkeypatch.
        seen: where the mistake has been made in public, if it has.
    """

    name: str
    cases: tuple[str, ...]
    apply: Callable
    seen: str = ""


MUTANTS: list[Mutant] = []


def mutant(name: str, *cases: str, seen: str = ""):
    """Decorator: this function applies the mutant."""

    def add(apply):
        MUTANTS.append(Mutant(name, cases, apply, seen))
        return apply

    return add


def _rule(patch, operation, argument, function) -> None:
    arguments = OPERATIONS[operation].arguments
    assert argument in arguments
    patch.setitem(arguments, argument, function)


def _wrap(patch, owner, name, around) -> None:
    """owner.name becomes ``around(original, *args, **kwargs)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))


# -- uses of parameters


@mutant(
    "the last use of a parameter overwrites the others",
    "tied weights",
    "a layer used three times",
    seen="GhostSuite",
)
def _(patch):
    patch.setattr(
        tape, "add_dots", lambda totals, root, dots: totals.__setitem__(root, dots.double())
    )


@mutant("only the first use of a parameter counts", "tied weights", "a layer used three times")
def _(patch):
    patch.setattr(
        tape, "add_dots", lambda totals, root, dots: totals.setdefault(root, dots.double())
    )


@mutant("the fused head forgets the loss's own gradient", "fused head", "fused head, tied")
def _(patch):
    _wrap(patch, HeadFactor, "dots", lambda original, self, V: original(self, V) / self.gradient)


@mutant("of a weight made of two parameters only one counts", "LoRA multiplied in")
def _(patch):
    def push(original, self, root, V):
        pushed = original(self, root, V)
        return pushed if root == self.roots[0] else torch.zeros_like(pushed)

    _wrap(patch, Derived, "jvp", push)


@mutant("samples and tokens of folded rows are swapped", "linear, folded tokens", "Conv1D")
def _(patch):
    patch.setattr(
        linear,
        "token_rows",
        lambda x, n: (
            x.reshape(-1, n, x.shape[-1]).transpose(0, 1)
            if x.dim() == 2
            else by_sample(x, n).reshape(n, -1, x.shape[-1])
        ),
    )


@mutant("tokens are summed before the product", "linear, few tokens", "linear, many tokens")
def _(patch):
    _outer(patch, lambda a, b: (a.sum(1, keepdim=True), b.sum(1, keepdim=True)))


@mutant("mean over tokens instead of the sum", "linear, few tokens")
def _(patch):
    _outer(patch, lambda a, b: (a, b / b.shape[1]))


@mutant("the last token is left out", "linear, few tokens")
def _(patch):
    _outer(patch, lambda a, b: (a[:, :-1], b[:, :-1]) if b.shape[1] > 1 else (a, b))


@mutant("products in bfloat16", "linear, few tokens", seen="GhostSuite")
def _(patch):
    _outer(patch, lambda a, b: (a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)))


@mutant("sums in float32", "linear, few tokens", "transformer block")
def _(patch):
    _wrap(
        patch,
        tape,
        "add_dots",
        lambda original, totals, root, dots: original(totals, root, dots.float()),
    )


def _outer(patch, change) -> None:
    def dots(original, self, V):
        a, b = change(self.a, self.b)
        return original(replace(self, a=a, b=b), V)

    _wrap(patch, Outer, "dots", dots)


@mutant("no bias in linear layers", "linear, few tokens")
def _(patch):
    _rule(
        patch,
        F.linear,
        "bias",
        lambda n, b, input, weight, bias: Dense(b.new_zeros(n, b.shape[-1])),
    )


@mutant("no bias in Conv1D", "Conv1D", "transformer block of Conv1D")
def _(patch):
    _rule(
        patch,
        torch.addmm,
        "input",
        lambda n, b, input, mat1, mat2: Dense(b.new_zeros(n, b.shape[-1])),
    )


@mutant("the padding row is counted", "embedding, padding row, tied")
def _(patch):
    def rule(n, b, input, weight, *args, **kwargs):
        return embedding.table_rows(n, b, input, weight)

    _rule(patch, F.embedding, "weight", rule)


@mutant("a token that occurs twice in a sample counts once", "embedding")
def _(patch):
    def dots(original, self, V):
        b = self.b.clone()
        for i, ids in enumerate(self.ids):
            for t, token in enumerate(ids):
                if bool((ids[:t] == token).any()):
                    b[i, t] = 0
        return original(replace(self, b=b), V)

    _wrap(patch, Rows, "dots", dots)


@mutant(
    "positions looked up once for all are a batch of one",
    "positions [1, T]",
    "positions [T]",
    seen="opacus issue 841",
)
def _(patch):
    # every sample gets the mean, so that the sum over samples is right and no books can tell
    original = elementwise.elementwise

    def rule(n, b, call):
        factor = original(n, b, call)
        return (
            Dense(factor.g.mean(0, keepdim=True).expand_as(factor.g))
            if isinstance(factor, Dense)
            else factor
        )

    patch.setattr(OPERATIONS[torch.Tensor.add], "general", rule)
    patch.setattr(OPERATIONS[torch.Tensor.__add__], "general", rule)


@mutant("a parameter expanded over the batch gives sample 0 everything", "class token")
def _(patch):
    from inrun.rules.factors import Aligned

    def dots(original, self, V):
        out = original(self, V)
        return torch.cat([out.sum(1, keepdim=True), torch.zeros_like(out[:, 1:])], 1)

    _wrap(patch, Aligned, "dots", dots)


@mutant("gain and offset of LayerNorm are swapped", "LayerNorm")
def _(patch):
    gain, offset = (
        OPERATIONS[F.layer_norm].arguments["weight"],
        OPERATIONS[F.layer_norm].arguments["bias"],
    )
    _rule(patch, F.layer_norm, "weight", offset)
    _rule(patch, F.layer_norm, "bias", gain)


@mutant(
    "LayerNorm's gain sees the input before normalisation", "LayerNorm", "LayerNorm over two axes"
)
def _(patch):
    def rule(n, b, input, normalized_shape, weight=None, bias=None, eps=1e-5):
        return Dense((b * input).reshape(n, -1, *weight.shape).sum(1))

    _rule(patch, F.layer_norm, "weight", rule)


@mutant("GroupNorm normalises all channels together", "GroupNorm")
def _(patch):
    original = OPERATIONS[F.group_norm].arguments["weight"]
    _rule(
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

    _rule(patch, F.rms_norm, "weight", rule)


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

    _wrap(patch, conv, "filter_gradients", weight)


@mutant(
    "input and output channels of a convolution are swapped",
    "convolution 2d, C k k = O",
    seen="GhostSuite",
)
def _(patch):
    def weight(original, n, b, x, w, *options):
        g = original(n, b, x, w, *options).g
        return Dense(g.flatten(2).transpose(1, 2).reshape(g.shape))

    _wrap(patch, conv, "filter_gradients", weight)


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

    _wrap(patch, conv, "filter_gradients", weight)


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

    _wrap(patch, conv, "filter_gradients", weight)


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

    _wrap(patch, conv, "filter_gradients", weight)


@mutant(
    "a convolution's bias is summed over all axes but the last",
    "convolution 2d, width = O",
    seen="GhostSuite",
)
def _(patch):
    _rule(
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

    _wrap(patch, TrackedParameters, "track", track)


# -- the validation side


def _separately_summed(patch, applies) -> None:
    """The target's gradient of a linear map as (sum_m b)^T (sum_m a), where
    ``applies(operation)``.
    """

    def gradient(original, self, at=None):
        found = dict(original(self, at))
        model_batch = Tape(3)  # the targets of these cases have three samples
        operations: list[str] = []
        sink = model_batch.sink
        model_batch.sink = lambda operation, origin, factor: (
            operations.append(operation),
            sink(operation, origin, factor),
        )
        with torch.enable_grad(), UseTracker(self.parameters, self._buffers.values(), model_batch):
            loss = self.closure()
        torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        for operation, (origin, factor) in zip(operations, model_batch.entries):
            if isinstance(factor, Outer) and applies(operation):
                found[origin.roots[0]] = (factor.b.sum(0).T @ factor.a.sum(0)).reshape(factor.shape)
        return found

    _wrap(patch, Target, "gradient", gradient)


@mutant(
    "the validation batch is summed before the product, Linear",
    "linear, many tokens",
    "linear, few tokens",
    seen="GhostSuite, issue 8",
)
def _(patch):
    _separately_summed(patch, lambda operation: operation == "linear")


@mutant(
    "the validation batch is summed before the product, Conv1D",
    "Conv1D",
    "Conv1D, many tokens",
    seen="GhostSuite, issue 8",
)
def _(patch):
    _separately_summed(patch, lambda operation: operation == "addmm")


@mutant("only the first validation sample counts", "three targets", "linear, few tokens")
def _(patch):
    from inrun.conformance.problem import Problem, take

    _wrap(
        patch,
        Problem,
        "target_loss",
        lambda original, self, model, batch: original(self, model, take(batch, 0, 1)),
    )


@mutant("targets get each other's directions", "three targets")
def _(patch):
    _wrap(
        patch,
        stack.DirectionStack,
        "stacked",
        lambda original, self, found, count: original(self, reversed(list(found)), count),
    )


@mutant("a target's gradient is kept from the first step on", "3 x 2", "schedule")
def _(patch):
    patch.setattr(Target, "forget", lambda self: None)


@mutant(
    "a target is evaluated under the weights after the step",
    "game: SGD, second order",
    "second order",
)
def _(patch):
    def gradient_and_hvp(original, self, direction):
        _, hvp = original(self, direction)
        after = {name: self.parameters[name].detach() - 2 * d for name, d in direction.items()}
        return self.gradient(lambda: after), hvp

    _wrap(patch, Target, "gradient_and_hvp", gradient_and_hvp)


@mutant(
    "a target's gradient is left in .grad",
    "linear, few tokens",
    seen="a re-implementation that trains on the validation point",
)
def _(patch):
    def gradient(original, self, at=None, key=None):
        found = original(self, at, key)
        for name, g in found.items():
            p = self.parameters[name]
            p.grad = g.clone() if p.grad is None else p.grad + g
        return found

    _wrap(patch, Target, "gradient", gradient)


@mutant("a target draws from the training's random numbers", "random targets")
def _(patch):
    patch.setattr(torch.random, "fork_rng", lambda devices=(): contextlib.nullcontext())


@mutant("a target's forward stays in the buffers", "writes to buffers")
def _(patch):
    def init(original, self, *args):
        original(self, *args)
        self._buffers = {}

    original = Target.__init__
    patch.setattr(Target, "__init__", lambda self, *args: init(original, self, *args))


@mutant("moved weights are put back by adding", "path", "1 x 6")
def _(patch):
    def gradient(original, self, at=None, key=None):
        found = original(self, at, key)
        if at is not None:
            with torch.no_grad():
                for name, w in at().items():
                    change = self.parameters[name] - w
                    self.parameters[name].sub_(change).add_(change)
        return found

    _wrap(patch, Target, "gradient", gradient)


# -- directions


def _direction(patch, kind, around) -> None:
    registered = KINDS[kind]

    def changed(what, step, target):
        return around(registered.directions, what, step, target)

    patch.setitem(KINDS, kind, registered._replace(directions=changed))


@mutant("values have the printed sign", "linear, few tokens", seen="a re-implementation on MNIST")
def _(patch):
    _wrap(
        patch,
        stack,
        "directions",
        lambda original, *args: {name: -v for name, v in original(*args).items()},
    )


@mutant("no learning rate", "linear, few tokens", seen="GhostSuite")
def _(patch):
    _direction(patch, "first_order", lambda original, what, step, target: dict(target.gradient()))


@mutant("the Hessian is the identity", "second order", "second order, attention", seen="GhostSuite")
def _(patch):
    _wrap(
        patch,
        Target,
        "gradient_and_hvp",
        lambda original, self, direction: (original(self, direction)[0], dict(direction)),
    )


@mutant("eta^2 instead of eta^2 / 2", "second order", "game: SGD, second order")
def _(patch):
    _wrap(
        patch,
        Target,
        "gradient_and_hvp",
        lambda original, self, direction: original(
            self, {name: 2 * d for name, d in direction.items()}
        ),
    )


@mutant("no curvature", "second order")
def _(patch):
    _direction(
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

    _wrap(patch, Step, "middle", middle)


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

    _wrap(patch, OpenStep, "view", view)


@mutant("path is evaluated at its end", "path", "game: SGD, path")
def _(patch):
    _wrap(
        patch,
        path_module,
        "segments",
        lambda original, *args: [(hi, lo, hi) for _, lo, hi in original(*args)],
    )


@mutant("path is evaluated at its start", "path", "game: SGD, path")
def _(patch):
    _wrap(
        patch,
        path_module,
        "segments",
        lambda original, *args: [(lo, lo, hi) for _, lo, hi in original(*args)],
    )


@mutant("path's Gauss nodes have equal weights", "path, 3 Gauss nodes")
def _(patch):
    def segments(original, nodes, quadrature):
        return [
            (node, k / nodes, (k + 1) / nodes)
            for k, (node, _, _) in enumerate(original(nodes, quadrature))
        ]

    _wrap(patch, path_module, "segments", segments)


@mutant("path starts at w instead of w - u(0)", "game: Nesterov with decay, path", "AdamW, path")
def _(patch):
    def moved(original, self, method, fraction):
        rules = self.rules(method)
        return {
            name: w + rules[name].zero() if name in rules else w
            for name, w in original(self, method, fraction).items()
        }

    _wrap(patch, Step, "moved", moved)


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

    _wrap(patch, Step, "moved", everywhere)
    _wrap(patch, Step, "without_samples", everywhere)


@mutant("impulse credit is not given", "momentum, impulse", "AdamW, impulse")
def _(patch):
    def directions(original, what, step, target):
        return original(replace(what, credit="immediate"), step, target)

    _wrap(patch, stack, "directions", directions)


# -- updates


@mutant("the frozen slope instead of the secant", "AdamW, secant", "AdamW, path")
def _(patch):
    def pull_back(original, self, method, name, cotangent, lo=0.0, hi=1.0, at=None):
        return (hi - lo) * self.rules(method)[name].frozen_slope() * cotangent

    _wrap(patch, Step, "pull_back", pull_back)


@mutant("the tangent at G instead of the secant", "AdamW, secant")
def _(patch):
    _wrap(
        patch,
        Update,
        "secant",
        lambda original, self, g, lo=0.0, hi=1.0: (
            (hi - lo) * self.vjp(g, torch.ones_like(g)).nan_to_num()
        ),
    )
    patch.setattr(AdamUpdate, "secant", Update.secant)


@mutant("elements without state get the plain secant", "AdamW, path", "Lion, path")
def _(patch):
    _wrap(patch, Step, "_smooth", lambda original, self, V, *rest: V)


@mutant("only the first block of a large tensor is worked on", "a large matrix")
def _(patch):
    def blockwise(original, function, rule, *tensors):
        out = original(function, rule, *tensors).clone()
        out.view(-1)[1 << 16 :] = 0
        return out

    _wrap(patch, step_module, "blockwise", blockwise)


@mutant("coalition slopes for all elements", "AdamW, path")
def _(patch):
    patch.setattr(AdamUpdate, "rough_everywhere", True)
    _wrap(
        patch,
        AdamUpdate,
        "stateless",
        lambda original, self: torch.ones_like(self.second, dtype=torch.bool),
    )
    _wrap(
        patch,
        AdamUpdate,
        "noise_dominated",
        lambda original, self, q: torch.ones_like(q, dtype=torch.bool),
    )


@mutant("the second step takes its state for settled", "AdamW, path")
def _(patch):
    patch.setattr(AdamUpdate, "warming_up", False)


@mutant("coalition slopes from the square of the sum", "AdamW, path", "AdamW, rare tokens, path")
def _(patch):
    _wrap(
        patch,
        Tape,
        "squares",
        lambda original, self, root: (
            None
            if original(self, root) is None
            else sum(self.dense(root, i) for i in range(self.n)) ** 2
        ),
    )


@mutant("coalition slopes for one player too many", "AdamW, path")
def _(patch):
    _wrap(
        patch,
        step_module,
        "coalition_slope",
        lambda original, update, g, q, n, lo, hi: original(update, g, q, n + 1, lo, hi),
    )


@mutant(
    "1 / eps as the slope of elements without state", "AdamW, rare tokens, state before the step"
)
def _(patch):
    def frozen_slope(original, self):
        slope = original(self)
        if self.t == 1:
            return slope
        return torch.where(self.second == 0, self.lr * (1 - self.b1) / self.bias1 / self.eps, slope)

    _wrap(patch, AdamUpdate, "frozen_slope", frozen_slope)


@mutant("Adam's bias correction is one step behind", "AdamW, path", "Adam, path")
def _(patch):
    def init(self, *args):
        original(self, *args)
        t = max(self.t - 1, 1)
        self.bias1, self.bias2 = 1.0 - self.b1**t, 1.0 - self.b2**t

    original = AdamUpdate.__init__
    patch.setattr(AdamUpdate, "__init__", init)


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

    _wrap(patch, AdamUpdate, "frozen_slope", frozen_slope)


@mutant("eps inside Adam's root", "AdamW, path", "AdamW, secant")
def _(patch):
    _wrap(
        patch,
        AdamUpdate,
        "_root",
        lambda original, self, g: (original(self, g) ** 2 + self.eps).sqrt() - self.eps,
    )


@mutant("weight decay is forgotten in AdamW's u", "AdamW, path", "AdamW, state before the step")
def _(patch):
    def call(original, self, g):
        return original(self, g) - (
            self.lr * self.weight_decay * self.weight if self.decoupled else 0.0
        )

    _wrap(patch, AdamUpdate, "__call__", call)


@mutant("Adam's decay inside the gradient is taken for AdamW's", "Adam, path", "Adam, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.decoupled = True

    original = AdamUpdate.__init__
    patch.setattr(AdamUpdate, "__init__", init)


@mutant("amsgrad is ignored", "AMSGrad, path", "AMSGrad, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.amsgrad = False

    original = AdamUpdate.__init__
    patch.setattr(AdamUpdate, "__init__", init)


@mutant(
    "adaptive optimizers are valued as SGD",
    "AdamW, path",
    "Adam, secant",
    seen="the paper's own experiments",
)
def _(patch):
    _wrap(patch, Step, "rules", lambda original, self, method: self.plain)


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
    patch.setattr(SGDUpdate, "__init__", init)


@mutant("dampening is ignored", "dampened momentum, path", "dampened momentum, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.keep = 1.0

    original = SGDUpdate.__init__
    patch.setattr(SGDUpdate, "__init__", init)


@mutant("Nesterov is taken for plain momentum", "Nesterov, path", "Nesterov, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.nesterov = False

    original = SGDUpdate.__init__
    patch.setattr(SGDUpdate, "__init__", init)


@mutant(
    "momentum's buffer is forgotten", "momentum, path", "game: momentum with decay, second order"
)
def _(patch):
    def call(original, self, g):
        return original(self, g) - (
            self.lr * self.momentum * self.buffer if self.buffer is not None else 0.0
        )

    _wrap(patch, SGDUpdate, "__call__", call)


@mutant("Lion's sign is taken of the gradient alone", "Lion, path", "Lion, secant")
def _(patch):
    def init(self, *args):
        original(self, *args)
        self.first = torch.zeros_like(self.first)

    original = LionUpdate.__init__
    patch.setattr(LionUpdate, "__init__", init)


# -- the step as a whole


@mutant("only the last micro-batch is valued", "2 x 3", "3 x 2", seen="GhostSuite")
def _(patch):
    def collect(original, self, V, of):
        out = original(self, V, of)
        first = sum(len(m.ids) for m in self.done[:-1])
        return {
            name: torch.cat([torch.zeros_like(d[:, :first]), d[:, first:]], 1)
            for name, d in out.items()
        }

    _wrap(patch, MicroBatches, "dots", collect)


@mutant("micro-batches come out in the wrong order", "2 x 3", "3 x 2")
def _(patch):
    def collect(original, self, V, of):
        self.done.reverse()
        out = original(self, V, of)
        self.done.reverse()
        return out

    _wrap(patch, MicroBatches, "dots", collect)


@mutant("values are divided by the number of samples", "linear, few tokens", seen="GhostSuite")
def _(patch):
    _wrap(
        patch,
        MicroBatches,
        "dots",
        lambda original, self, V, of: {
            name: d / d.shape[1] for name, d in original(self, V, of).items()
        },
    )


@mutant(
    "values are divided by the sample's gradient norm",
    "path",
    "AdamW, path",
    seen="GhostSuite under Adam",
)
def _(patch):
    def collect(original, self, V, of):
        out = original(self, V, of)
        norms = torch.stack(
            [
                torch.cat([m.record.dense(name, i).flatten() for name in out]).norm()
                for m in self.done
                for i in range(len(m.ids))
            ]
        )
        return {name: d / norms for name, d in out.items()}

    _wrap(patch, MicroBatches, "dots", collect)


@mutant("the clip factor is not applied", "clipping", "clipping, AdamW")
def _(patch):
    _wrap(patch, OpenStep, "gradients_and_factor", lambda original, self: (original(self)[0], 1.0))


@mutant("the clip factor is applied to G twice", "clipping, second order")
def _(patch):
    def both(original, self):
        gradients, c = original(self)
        return {name: c * g for name, g in gradients.items()}, c

    _wrap(patch, OpenStep, "gradients_and_factor", both)


@mutant("G is the gradient before clipping", "clipping, second order", "clipping, AdamW")
def _(patch):
    def both(original, self):
        gradients, c = original(self)
        return {name: g / c for name, g in gradients.items()}, c

    _wrap(patch, OpenStep, "gradients_and_factor", both)


@mutant("the learning rate is that of the first step", "schedule", "clipping, AdamW")
def _(patch):
    def owners(original, self):
        return {key: (optimizer, dict(group)) for key, (optimizer, group) in original(self).items()}

    _wrap(patch, TrackedParameters, "find_owners", owners)


@mutant(
    "a learning rate set after the backward is missed",
    "schedule, set late",
    "schedule, set late, forward route",
)
def _(patch):
    patch.setattr(stack.LearningRates, "ratio", lambda self, name: 1.0)


@mutant("the learning rate is that of the next step", "schedule")
def _(patch):
    # values are taken after the scheduler has stepped
    schedule = (1.0, 0.3, 0.7, 0.7)

    def values(original, self, *args):
        ratio = schedule[self.number + 1] / schedule[self.number]
        total, dots, tokens = original(self, *args)
        return ratio * total, {name: ratio * d for name, d in dots.items()}, tokens

    _wrap(patch, OpenStep, "values", values)


@mutant("all parameters get the first group's options", "parameter groups")
def _(patch):
    def owners(original, self):
        return {
            key: (optimizer, optimizer.param_groups[0])
            for key, (optimizer, _) in original(self).items()
        }

    _wrap(patch, TrackedParameters, "find_owners", owners)


@mutant("the forward is repeated with other dropout masks", "dropout, forward route")
def _(patch):
    patch.setattr(RandomState, "restore", lambda self: None)


@mutant(
    "a second forward of the batch stays in the buffers",
    "writes to buffers, tokens",
    "writes to buffers, forward route",
)
def _(patch):
    patch.setattr(MicroBatches, "again", lambda self, micro: contextlib.nullcontext())


@mutant("hooks stay on the optimizer", "linear, few tokens")
def _(patch):
    _wrap(patch, Attributor, "close", lambda original, self: self._hooks.clear() or original(self))


@mutant("the random state moves on", "linear, few tokens")
def _(patch):
    _wrap(patch, OpenStep, "finish", lambda original, self: (original(self), torch.rand(()))[0])


@mutant("gradients are changed in the last bit", "linear, few tokens", "clipping")
def _(patch):
    def finish(original, self):
        found = original(self)
        for p in self.setting.parameters.by_name.values():
            p.grad.mul_(1 + 4e-16)
        return found

    _wrap(patch, OpenStep, "finish", finish)


@mutant("drift is left out", "AdamW, path", "momentum, path")
def _(patch):
    def opened(original, self, result, *args):
        original(self, result, *args)
        result.drift.update(dict.fromkeys(result.drift, 0.0))

    _wrap(patch, Ledger, "open", opened)


@mutant("drift has the wrong sign in the ledger", "AdamW, path", "momentum, path")
def _(patch):
    def close(original, self, writer):
        original(self, writer)
        for row in self.last.values():
            row["residual"] = row["drop"] + row["drift"] - row["values"]

    _wrap(patch, Ledger, "close", close)


@mutant(
    "the paper's formula uses the optimizer's slope",
    "AdamW, paper's formula",
    "AdamW, paper's second order",
)
def _(patch):
    _wrap(patch, Step, "rules", lambda original, self, method: self.updates)


@mutant("the plain rule decays weights", "AdamW, paper's second order")
def _(patch):
    _wrap(
        patch,
        PlainSGD,
        "__call__",
        lambda original, self, g: original(self, g) + self.lr * 0.1 * self.weight,
    )
