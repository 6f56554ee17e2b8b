"""Mistakes in what a use of a parameter contributes: sums over uses, tokens and rows."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from inrun.rules import OPERATIONS, elementwise, embedding
from inrun.rules.factors import Dense, by_sample
from tests.support.mutants.base import exchange, exchange_rule, mutant, wrap


@mutant(
    "the last use of a parameter overwrites the others",
    "tied weights",
    "a layer used three times",
    seen="GhostSuite",
)
def _(patch):
    exchange(
        patch, "tape.add_dots", lambda totals, root, dots: totals.__setitem__(root, dots.double())
    )


@mutant("only the first use of a parameter counts", "tied weights", "a layer used three times")
def _(patch):
    exchange(
        patch, "tape.add_dots", lambda totals, root, dots: totals.setdefault(root, dots.double())
    )


@mutant("the fused head forgets the loss's own gradient", "fused head", "fused head, tied")
def _(patch):
    wrap(patch, "HeadFactor.dots", lambda original, self, V: original(self, V) / self.gradient)


@mutant("of a weight made of two parameters only one counts", "LoRA multiplied in")
def _(patch):
    def push(original, self, root, V):
        pushed = original(self, root, V)
        return pushed if root == self.roots[0] else torch.zeros_like(pushed)

    wrap(patch, "Derived.jvp", push)


@mutant("samples and tokens of folded rows are swapped", "linear, folded tokens", "Conv1D")
def _(patch):
    exchange(
        patch,
        "linear.token_rows",
        lambda x, n: (
            x.reshape(-1, n, x.shape[-1]).transpose(0, 1)
            if x.dim() == 2
            else by_sample(x, n).reshape(n, -1, x.shape[-1])
        ),
    )


@mutant("tokens are summed before the product", "linear, few tokens", "linear, many tokens")
def _(patch):
    outer(patch, lambda a, b: (a.sum(1, keepdim=True), b.sum(1, keepdim=True)))


@mutant("mean over tokens instead of the sum", "linear, few tokens")
def _(patch):
    outer(patch, lambda a, b: (a, b / b.shape[1]))


@mutant("the last token is left out", "linear, few tokens")
def _(patch):
    outer(patch, lambda a, b: (a[:, :-1], b[:, :-1]) if b.shape[1] > 1 else (a, b))


@mutant("products in bfloat16", "linear, few tokens", seen="GhostSuite")
def _(patch):
    outer(patch, lambda a, b: (a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)))


@mutant("sums in float32", "linear, few tokens", "transformer block")
def _(patch):
    wrap(
        patch,
        "tape.add_dots",
        lambda original, totals, root, dots: original(totals, root, dots.float()),
    )


def outer(patch, change) -> None:
    def dots(original, self, V):
        a, b = change(self.a, self.b)
        return original(replace(self, a=a, b=b), V)

    wrap(patch, "Outer.dots", dots)


@mutant("no bias in linear layers", "linear, few tokens")
def _(patch):
    exchange_rule(
        patch,
        F.linear,
        "bias",
        lambda n, b, input, weight, bias: Dense(b.new_zeros(n, b.shape[-1])),
    )


@mutant("no bias in Conv1D", "Conv1D", "transformer block of Conv1D")
def _(patch):
    exchange_rule(
        patch,
        torch.addmm,
        "input",
        lambda n, b, input, mat1, mat2: Dense(b.new_zeros(n, b.shape[-1])),
    )


@mutant("the padding row is counted", "embedding, padding row, tied")
def _(patch):
    def rule(n, b, input, weight, *args, **kwargs):
        return embedding.table_rows(n, b, input, weight)

    exchange_rule(patch, F.embedding, "weight", rule)


@mutant("a token that occurs twice in a sample counts once", "embedding")
def _(patch):
    def dots(original, self, V):
        b = self.b.clone()
        for i, ids in enumerate(self.ids):
            for t, token in enumerate(ids):
                if bool((ids[:t] == token).any()):
                    b[i, t] = 0
        return original(replace(self, b=b), V)

    wrap(patch, "Rows.dots", dots)


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
    def dots(original, self, V):
        out = original(self, V)
        return torch.cat([out.sum(1, keepdim=True), torch.zeros_like(out[:, 1:])], 1)

    wrap(patch, "Aligned.dots", dots)
