"""The parameters whose gradients are valued, and what their optimizers are about to do with
them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from inrun.attributor.balance import gradient_norms
from inrun.attributor.hooks import StepError
from inrun.attributor.tolerance import Shares
from inrun.config import ConfigError
from inrun.updates import PlainSGD, SGDUpdate, UnknownOptimizerError, Update, snapshots


class TrackedParameters:
    """The trainable parameters of a model that the optimizers update.

    Args:
        model: any module.
        optimizers: those whose steps use the gradients.
        pattern: regular expression; only parameters whose name it finds are tracked. None: all.

    Attributes:
        by_name: name -> parameter.
        shares: what the balance of the steps so far has shown of them.
        reads: how often they were looked for: once at first, and at every step.
        constants: the model's buffers and other parameters: a use of them is nobody's gradient.

    Raises:
        ConfigError: there is nothing to track, a parameter is sharded, or the optimizers also move
            parameters of another module.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        pattern: str | None = None,
    ):
        self.optimizers = [plain_optimizer(optimizer) for optimizer in optimizers]
        self.model, self.pattern = model, pattern
        self.by_name: dict[str, Tensor] = {}
        self.constants: list[Tensor] = []
        self.shares, self.reads = Shares(), 0
        self.read_again()

    def read_again(self) -> bool:
        """Look anew at what requires a gradient and what the optimizers' groups hold.

        Done at the beginning of every step: layers are unfrozen, groups added. Returns whether
        other parameters are tracked than before.
        """
        self.reads += 1
        self.owners = self.find_owners()
        found = self.track(self.model, self.pattern)
        if {n: id(p) for n, p in found.items()} == {n: id(p) for n, p in self.by_name.items()}:
            return False
        self.by_name.clear()  # in place: others hold this very dictionary
        self.by_name.update(found)
        tracked = {id(p) for p in found.values()}
        others = (p for p in self.model.parameters() if id(p) not in tracked)
        self.constants = [*self.model.buffers(), *others]
        return True

    def find_owners(self) -> dict[int, tuple[torch.optim.Optimizer, dict]]:
        """id of a parameter -> its optimizer and parameter group."""
        return {id(p): (o, group) for o, group, p in held(self.optimizers)}

    def track(self, model: nn.Module, pattern: str | None) -> dict[str, Tensor]:
        """Name -> parameter, of those that are valued."""
        trainable = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and id(p) in self.owners
        }
        if not trainable:
            raise ConfigError(
                "the optimizer updates no trainable parameter of the model; was it built from "
                "another model's parameters?"
            )
        if pattern is None:
            self._refuse_foreign(model)
        tracked: dict[str, Tensor] = {
            name: p for name, p in trainable.items() if pattern is None or re.search(pattern, name)
        }
        if not tracked:
            raise ConfigError(
                f"params={pattern!r} matches no trainable parameter; they are "
                f"{', '.join(list(trainable)[:8])}, ..."
            )
        if sharded := [name for name, p in tracked.items() if hasattr(p, "device_mesh")]:  # DTensor
            raise ConfigError(
                f"parameter {sharded[0]} is sharded over devices (FSDP, tensor parallelism), which "
                "is not supported; use DistributedDataParallel"
            )
        return tracked

    def _refuse_foreign(self, model: nn.Module) -> None:
        own = {id(p) for p in model.parameters()}
        foreign = [p for _, _, p in held(self.optimizers) if id(p) not in own]
        moved = [tuple(p.shape) for p in foreign if p.requires_grad]
        if moved:
            raise ConfigError(
                f"the optimizer also moves {len(moved)} parameters that are not part of the model "
                f"(shapes {', '.join(map(str, moved[:4]))}): what they do to the targets would be "
                "missing. Give one module that holds all, such as nn.ModuleList([encoder, head]); "
                "or say params='.' to value the parameters of this model alone"
            )

    def refuse_unvalued(self, gradient: bool) -> None:
        """StepError if the optimizers hold a parameter of which no value tells: it requires a
        gradient since the step began, or, where it has a `gradient`, it does not and is moved.
        """
        tracked, owners = {id(p) for p in self.by_name.values()}, self.find_owners()
        names = {id(p): name for name, p in self.model.named_parameters()}
        for o, group, p in held(self.optimizers):
            name = names.get(id(p))
            left_out = self.pattern is not None and not (name and re.search(self.pattern, name))
            if id(p) in tracked or left_out:
                continue
            told = f"parameter {name}" if name else f"a parameter of shape {tuple(p.shape)}"
            if p.requires_grad and name and id(p) in owners and not gradient:
                raise StepError(
                    f"{told} requires a gradient since the step's first micro-batch, and did not "
                    "before: a part of its gradient would be nobody's. Freeze, unfreeze and add "
                    "groups between steps, after optimizer.step() and zero_grad()"
                )
            if gradient and p.grad is not None and moves(o, p, group):
                raise StepError(
                    f"{told} is not valued (it required no gradient when the step began), but has "
                    "a .grad, and the optimizer is about to move it by that. Say p.grad = None "
                    "where you freeze it (zero_grad(set_to_none=True)), or freeze and unfreeze "
                    "between steps"
                )

    @property
    def device(self) -> torch.device:
        """Where the first of them lives."""
        return next(iter(self.by_name.values())).device

    def learning_rate(self, name: str) -> float:
        """The present lr of a parameter's group."""
        return float(self.owners[id(self.by_name[name])][1]["lr"])

    def gradients(self) -> dict[str, Tensor]:
        """Name -> `.grad`, of those that have one; that of a sparse table is written out."""
        found = ((name, p.grad) for name, p in self.by_name.items() if p.grad is not None)
        return {name: g.to_dense() if g.layout != torch.strided else g for name, g in found}

    def loss_scale(self) -> float:
        """What a fused optimizer divides the gradient by in its own kernel: a loss scaler's scale.

        Raises:
            StepError: of several optimizers only some do.
        """
        scales = [getattr(o, "grad_scale", None) for o in self.optimizers]
        found = [float(scale) for scale in scales if scale is not None]
        if found and (len(found) < len(scales) or len(set(found)) > 1):
            raise StepError(
                "the loss scaler has told its scale to some of the optimizers only; call "
                "scaler.unscale_(optimizer) for each of them before the first one steps"
            )
        return found[0] if found else 1.0

    def overflowed(self) -> bool:
        """Whether a loss scaler has told a fused optimizer to skip the step."""
        found = [getattr(o, "found_inf", None) for o in self.optimizers]
        return any(bool(inf) for inf in found if inf is not None)

    def moving(self) -> set[int]:
        """Ids of the optimizers that have a gradient of a tracked parameter to step with."""
        return {id(self.owners[id(p)][0]) for p in self.by_name.values() if p.grad is not None}

    def norms(self) -> dict[str, Tensor]:
        """Name -> norm of `.grad`, not waited for (`balance.gradient_norms`)."""
        return gradient_norms(self.gradients())

    def gradient_versions(self) -> dict[str, tuple[int, int]]:
        """What tells, without a look at the numbers, that no gradient was written to."""
        found = ((name, p.grad) for name, p in self.by_name.items() if p.grad is not None)
        return {name: (id(g), g._version) for name, g in found}

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
            rules = snapshots(places)
        except UnknownOptimizerError:
            if needed:
                raise
            return plain, plain  # the paper's formula needs lr only; drift is then not known
        for name, rule in rules.items():
            if self.by_name[name].is_complex() and not isinstance(rule, SGDUpdate):
                raise UnknownOptimizerError(
                    f"parameter {name} is complex, which {type(owners[name][0]).__name__} moves as "
                    "pairs of real numbers; for that there is no update rule. Keep it as pairs, "
                    "torch.view_as_complex(pairs) in the forward, or train it with SGD"
                )
        return rules, plain


def held(
    optimizers: Sequence[torch.optim.Optimizer],
) -> Iterator[tuple[torch.optim.Optimizer, dict, Tensor]]:
    """Every parameter of the optimizers, with its optimizer and group."""
    for o in optimizers:
        for group in o.param_groups:
            for p in group["params"]:
                yield o, group, p


def moves(optimizer: torch.optim.Optimizer, p: Tensor, group: dict) -> bool:
    """Whether the optimizer's step will change a parameter that has a gradient."""
    assert p.grad is not None
    if bool((p.grad != 0).any()):
        return True
    try:
        return bool((snapshots({"": (optimizer, p, group)})[""].zero() != 0).any())
    except UnknownOptimizerError:
        return bool(optimizer.state.get(p) or group.get("weight_decay"))


def plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside a wrapper that has no hooks of its own, as accelerate's."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer):
            raise ConfigError(
                f"{type(optimizer).__name__} is no torch optimizer that takes hooks; give the "
                "optimizer inside the wrapper"
            )
        optimizer = inner
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS evaluates the loss several times within a step, so that no gradient is that of "
            "the step and no sample has a value; train with another optimizer"
        )
    return optimizer


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
