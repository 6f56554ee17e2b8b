"""The parameters whose gradients are valued, and what their optimizers are about to do with
them.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from inrun.attributor.balance import gradient_norms
from inrun.updates import PlainSGD, UnknownOptimizerError, Update, snapshots


class TrackedParameters:
    """The trainable parameters of a model that the optimizers update.

    Args:
        model: any module.
        optimizers: those whose steps use the gradients.
        pattern: regular expression; only parameters whose name it finds are tracked. None: all.

    Attributes:
        by_name: name -> parameter.
        constants: the model's buffers and other parameters: a use of them is nobody's gradient.

    Raises:
        ValueError: there is nothing to track, or a parameter is sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        pattern: str | None = None,
    ):
        self.optimizers = list(optimizers)
        self.owners = self.find_owners()
        self.by_name = self.track(model, pattern)
        tracked = {id(p) for p in self.by_name.values()}
        others = (p for p in model.parameters() if id(p) not in tracked)
        self.constants: list[Tensor] = [*model.buffers(), *others]

    def find_owners(self) -> dict[int, tuple[torch.optim.Optimizer, dict]]:
        """id of a parameter -> its optimizer and parameter group."""
        return {
            id(p): (o, group)
            for o in self.optimizers
            for group in o.param_groups
            for p in group["params"]
        }

    def track(self, model: nn.Module, pattern: str | None) -> dict[str, Tensor]:
        """Name -> parameter, of those that are valued."""
        trainable = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and id(p) in self.owners
        }
        if not trainable:
            raise ValueError(
                "the optimizer updates no trainable parameter of the model; was it built from "
                "another model's parameters?"
            )
        tracked: dict[str, Tensor] = {
            name: p for name, p in trainable.items() if pattern is None or re.search(pattern, name)
        }
        if not tracked:
            raise ValueError(
                f"params={pattern!r} matches no trainable parameter; they are "
                f"{', '.join(list(trainable)[:8])}, ..."
            )
        if sharded := [name for name, p in tracked.items() if hasattr(p, "device_mesh")]:  # DTensor
            raise ValueError(
                f"parameter {sharded[0]} is sharded over devices (FSDP, tensor parallelism), which "
                "is not supported; use DistributedDataParallel"
            )
        return tracked

    @property
    def device(self) -> torch.device:
        """Where the first of them lives."""
        return next(iter(self.by_name.values())).device

    def learning_rate(self, name: str) -> float:
        """The present lr of a parameter's group."""
        return float(self.owners[id(self.by_name[name])][1]["lr"])

    def gradients(self) -> dict[str, Tensor]:
        """Name -> `.grad`, of those that have one."""
        return {name: p.grad for name, p in self.by_name.items() if p.grad is not None}

    def norms(self) -> dict[str, Tensor]:
        """Name -> norm of `.grad`, not waited for (`balance.gradient_norms`)."""
        return gradient_norms(self.by_name)

    def gradient_versions(self) -> dict[str, tuple[int, int]]:
        """What tells, without a look at the numbers, that no gradient was written to."""
        return {name: (id(g), g._version) for name, g in self.gradients().items()}

    def updates(self, needed: bool) -> tuple[Mapping[str, Update], Mapping[str, Update]]:
        """The update rules as the optimizers' states stand now, and the rules ``lr * gradient``.

        Args:
            needed: whether the optimizer's own rule is asked for; otherwise an optimizer without
                a rule is taken for plain SGD.

        Raises:
            UnknownOptimizerError: an optimizer has no rule, and it is needed.
        """
        owners = {name: self.owners[id(p)] for name, p in self.by_name.items()}
        plain = {name: PlainSGD(p, {}, owners[name][1]) for name, p in self.by_name.items()}
        try:
            places = {name: (o, self.by_name[name], group) for name, (o, group) in owners.items()}
            return snapshots(places), plain
        except UnknownOptimizerError:
            if needed:
                raise
            return plain, plain  # the paper's formula needs lr only; drift is then not known


class RandomState:
    """The state of the random generators that a forward may draw from, as it is now."""

    def __init__(self, parameters: TrackedParameters):
        devices = {p.device.index or 0 for p in parameters.by_name.values() if p.is_cuda}
        self.cpu = torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in sorted(devices)}

    def restore(self) -> None:
        """Make it the present state again, on the devices that it came from."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)
