"""What the evaluation of a target must leave as it was: the model's buffers and its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor


class TargetError(RuntimeError):
    """A target's closure gives no finite scalar of the parameters, or changes the training."""


class NonFiniteTargetError(TargetError):
    """A target's loss is NaN or infinite."""


class Untouched:
    """Restores buffers that a closure writes (running statistics); refuses written weights.

    Args:
        target: its name, for messages.
        parameters: name -> tracked parameter.
        buffers: name -> buffer of the model.
    """

    def __init__(self, target: str, parameters: Mapping[str, Tensor], buffers: dict[str, Tensor]):
        self.target, self.parameters, self.buffers = target, parameters, buffers
        # contents of the buffers by the version they were copied at, so that one that nobody writes
        # is copied once; one that the closure has written before is copied each time
        self._copies: dict[str, tuple[int, Tensor]] = {}
        self._written: set[str] = set()
        self._versions: dict[str, int] = {}

    def note(self) -> None:
        """Before the closure runs: which buffers it will write is not known, so all have copies."""
        self._versions = {name: p._version for name, p in self.parameters.items()}
        for name, buffer in self.buffers.items():
            known = name in self._copies and self._copies[name][0] == buffer._version
            if name in self._written or not known:
                self._copies[name] = buffer._version, buffer.detach().clone()

    def restore(self) -> None:
        """After it.

        Raises:
            TargetError: the closure wrote to weights: the training is not what it is without.
        """
        for name, buffer in self.buffers.items():
            version, content = self._copies[name]
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(content)
                self._written.add(name)
                del self._copies[name]
        moved = [name for name, p in self.parameters.items() if p._version != self._versions[name]]
        if moved:
            raise TargetError(
                f"target {self.target!r}: evaluating it wrote to {', '.join(moved)}, so that the "
                "training would not be what it is without values. nn.Embedding(max_norm=...) "
                "renormalises the rows that it looks up; leave max_norm out, and renormalise the "
                "table yourself after optimizer.step()"
            )
