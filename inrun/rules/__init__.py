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
"""

from inrun.rules import conv, elementwise, embedding, linear, norm, samplewise  # noqa: F401  (each registers its rules)
from inrun.rules.factors import Aligned, Dense, Factor, Outer, Rows
from inrun.rules.registry import find, refusal, rule

__all__ = ["Aligned", "Dense", "Factor", "Outer", "Rows", "find", "refusal", "rule"]
