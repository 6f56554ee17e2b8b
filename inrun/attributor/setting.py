"""What stays from step to step of an attributed training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inrun.attributor.audit import Audits
from inrun.attributor.excess import Excess
from inrun.attributor.kept import Room
from inrun.attributor.options import Options
from inrun.attributor.parameters import TrackedParameters
from inrun.attributor.processes import Processes
from inrun.attributor.targets import Targets
from inrun.config import require
from inrun.ghost import GradientBuffers
from inrun.methods import Step


@dataclass
class Setting:
    """The parts that every step of an attributed training shares.

    Attributes:
        settled: parameters all of whose elements have optimizer state.
        told_coarse: the warning about routes without squares was given.
    """

    options: Options
    model: nn.Module
    parameters: TrackedParameters
    targets: Targets
    excess: Excess
    processes: Processes
    buffers: GradientBuffers
    room: Room
    audits: Audits
    settled: set[str] = field(default_factory=set)
    told_coarse: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        targets: Mapping[str, Callable[[], Tensor]],
        options: Options,
    ) -> "Setting":
        """The parts for a model, its optimizers and targets, as the options say.

        Raises:
            ValueError: there is nothing to value, or the route cannot work here.
            UnknownOptimizerError: an optimizer has no update rule.
            NoFrozenSlopeError: one has no slope that is known before the gradient, as a method asks
                for.
        """
        model, processes = Processes.of(model, options.processes)
        route = options.route
        require(
            "attribution",
            (
                processes.alone or route.many_processes,
                f"route={route.kind!r} works in one process only; with several use route='tap', "
                "uncompiled",
            ),
        )
        several = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        parameters = TrackedParameters(model, several, options.params)
        made = Targets(targets, model, parameters.by_name, options, processes)
        buffers = route.buffers(parameters.device, any(m.may_wait for m in options.method))
        excess = Excess(options.method, processes)
        audits = Audits(options.audit, route, processes.alone)
        room = route.room(parameters.device)
        setting = cls(options, model, parameters, made, excess, processes, buffers, room, audits)
        view = setting.optimizer_view()  # an optimizer without a rule is refused now
        for method in options.method:
            method.check(view)
        return setting

    def optimizer_view(self, **facts) -> Step:
        """The step as the methods see it; facts: see `inrun.methods.Step`."""
        needed = any(m.update != "sgd" for m in self.options.method)
        updates, plain = self.parameters.updates(needed)
        return Step(updates, plain, self.parameters.by_name, settled=self.settled, **facts)
