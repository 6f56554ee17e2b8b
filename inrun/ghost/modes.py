"""Contexts that evaluate a model otherwise without touching it: at other weights, along a tangent,
or with its fused loss in a form that has the derivatives that are needed.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.overrides import TorchFunctionMode

import inrun_kernels
from inrun.ghost.arguments import rebuilder, tensors_of
from inrun_kernels.head import CROSS_ENTROPY_LOSS, CROSS_ENTROPY_SUM


class Substitute(TorchFunctionMode):
    """Inside this context every operation that is given one of the parameters gets its replacement
    instead.

    The parameters themselves are never written, so nothing has to be put back: ``with
    Substitute({w: w - u}): loss = closure()`` evaluates the closure at moved weights; with dual
    tensors as replacements it evaluates a derivative along them. Operations are seen by use, so
    modules, functional calls and tied weights need nothing special; code inside ``torch.compile``
    is not seen.

    Args:
        replacements: parameter -> tensor of the same shape.
    """

    def __init__(self, replacements: Mapping[Tensor, Tensor]):
        super().__init__()
        self.by_id = {id(old): new for old, new in replacements.items()}
        # kept alive, so that no other tensor can get one of these ids
        self.originals = list(replacements)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tensors_of(args, kwargs)
        by_id = self.by_id
        if any(id(leaf) in by_id for leaf in leaves):
            args, kwargs = rebuilder(args, kwargs)([by_id.get(id(leaf), leaf) for leaf in leaves])
        return func(*args, **kwargs)


class Expand(TorchFunctionMode):
    """Inside this context `inrun_kernels.cross_entropy_sum` is computed by `head`: its composite
    (any derivative), or `inrun_kernels.cross_entropy_sum_twice` (second derivatives).

    Enter it last: what it computes is for the outer modes to see.
    """

    def __init__(self, head: Callable[..., Tensor] = inrun_kernels.cross_entropy_sum_composite):
        super().__init__()
        self.head = head

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is CROSS_ENTROPY_SUM:
            return (self.head(*args),)
        if func is CROSS_ENTROPY_LOSS:
            x, w, targets, _, ignore_index = args  # the weights of `cross_entropy_sum` are ones
            return self.head(x, w, targets, ignore_index)
        return func(*args, **(kwargs or {}))
