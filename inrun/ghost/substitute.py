"""Evaluate a model at other weights, or along a tangent, without touching it."""

from collections.abc import Mapping

from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.ghost.arguments import rebuilder, tensors_of


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
        self.originals = list(
            replacements
        )  # kept alive, so that no other tensor can get one of these ids

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tensors_of(args, kwargs)
        by_id = self.by_id
        if any(id(leaf) in by_id for leaf in leaves):
            args, kwargs = rebuilder(args, kwargs)([by_id.get(id(leaf), leaf) for leaf in leaves])
        return func(*args, **kwargs)
