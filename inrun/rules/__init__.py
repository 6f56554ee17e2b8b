"""What one use of a parameter contributes to a sample's gradient: a rule per *operation*, none per
module.

A rule answers, for one argument of one operation, "what is sample i's share in the gradient of this
argument?", and says it as a `Factor`: an outer product of inputs and output gradients, rows of a
table, or a small dense array. It is found by the operation itself (`torch.nn.functional.linear`,
`torch.Tensor.__add__`, ...), so a parameter is covered wherever it is used: in a module, in a
functional call, twice, tied.

To add one::

    @rule(torch.nn.functional.linear, argument="weight")
    def linear_weight(n, b, input, weight, bias=None):
        return Outer(a=..., b=...)

`n` is the number of samples, `b` the gradient of the loss with respect to the operation's output;
the rest are the operation's own arguments, as they were in the forward. Samples lie along axis 0,
alone or folded with other axes (`[n * t, i]`).

The same file may hold a fused form (`fused`: the operation takes the dots in its own backward) and
a compiled one (`compiled`: for models under torch.compile). See `inrun.rules.registry`.
"""

from inrun.rules import (  # each registers its operations
    conv,  # noqa: F401
    elementwise,  # noqa: F401
    embedding,  # noqa: F401
    embedding_bag,  # noqa: F401
    factories,  # noqa: F401
    head,  # noqa: F401
    linear,  # noqa: F401
    masked,  # noqa: F401
    movement,  # noqa: F401
    norm,  # noqa: F401
    samplewise,  # noqa: F401
)
from inrun.rules.factors import Aligned, Dense, Factor, Outer, Rows
from inrun.rules.protocols import Origin, Probes, Sink, Tracker
from inrun.rules.registry import OPERATIONS, Operation, compiled, find, fused, known, refuse, rule

__all__ = [
    "OPERATIONS",
    "Aligned",
    "Dense",
    "Factor",
    "Operation",
    "Origin",
    "Outer",
    "Probes",
    "Rows",
    "Sink",
    "Tracker",
    "compiled",
    "find",
    "fused",
    "known",
    "refuse",
    "rule",
]
