"""What a case is, and the training loop that every engine is put around.

Axes: n train samples, t tokens. A problem's loss is a sum of rows, ``rows(model, batch) [n] or [n,
t]``, divided by one number for the whole step (the count of its labels), so that a sample's
gradient is defined by its own rows and does not depend on how the step is cut into micro-batches.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]

#: name of a parameter -> a tensor of its shape
Weights = dict[str, Tensor]

#: a label with this value is not predicted
IGNORED = -100


def added(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, from the first to the last."""
    return reduce(operator.add, terms)


def take(batch: Batch, first: int, last: int) -> Batch:
    """Samples first to last (exclusive)."""
    return {name: tensor[first:last] for name, tensor in batch.items()}


def size(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


@dataclass(frozen=True)
class Problem:
    """A model, its data, and its loss.

    Attributes:
        model: builds the model, float64, the same one every time.
        batch: step -> the samples of that step.
        targets: name -> builds the validation samples; the target is their mean loss.
        rows: (model, batch) -> loss of every row, [n] or [n, t], 0 where the label is ignored.
        loss: (model, micro-batch, divisor) -> scalar, where training does not simply add the rows;
            the same number in another way.
        count: number of rows that have a label.
        together: what the forward does to a sample depends on its micro-batch (dropout draws masks
            for all, an expert is chosen for all), so that gradients are taken sample by sample from
            the micro-batch's own forward.
        quiet: targets are evaluated with ``model.eval()``.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    targets: Mapping[str, Callable[[], Batch]]
    rows: Callable[[nn.Module, Batch], Tensor]
    count: Callable[[Batch], int]
    loss: Callable[[nn.Module, Batch, float], Tensor] | None = None
    together: bool = False
    quiet: bool = False

    def training_loss(self, model: nn.Module, part: Batch, divisor: float) -> Tensor:
        """The scalar that is backpropagated for one micro-batch."""
        return (
            self.loss(model, part, divisor) if self.loss else self.rows(model, part).sum() / divisor
        )

    def target_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a target's rows."""
        if not self.quiet:
            return self.rows(model, batch).sum() / self.count(batch)
        was = {module: module.training for module in model.modules()}
        model.eval()
        loss = self.rows(model, batch).sum() / self.count(batch)
        for module, training in was.items():
            module.training = training
        return loss


@dataclass(frozen=True)
class Formula:
    """What is to be computed, in the words of the project's methods, without their code.

    `state` is read for first_order, `nodes` and `quadrature` for path.
    """

    kind: str = "first_order"
    update: str = "auto"
    state: str = "previous"
    nodes: int = 1
    quadrature: str = "midpoint"
    credit: str = "immediate"
    route: str = "tap"

    def options(self) -> dict[str, object]:
        """The same as options of the method, by name."""
        own = {"first_order": ("state",), "path": ("nodes", "quadrature")}.get(self.kind, ())
        said = {name: getattr(self, name) for name in ("kind", "update", "credit", *own)}
        # the slope before the step is asked for in every step, however far it is off
        always = {"largest_excess": math.inf} if self.known_before and self.update == "auto" else {}
        return said | always

    @property
    def known_before(self) -> bool:
        """The direction does not depend on the batch's gradient."""
        return self.kind == "first_order" and (self.update == "sgd" or self.state == "previous")


@dataclass(frozen=True)
class Case:
    """One question with one answer.

    Attributes:
        name: unique.
        about: what goes wrong in an engine that fails here.
        optimizer: builds the optimizer of the model.
        micro: sizes of the micro-batches of a step; they add up to the batch.
        steps: optimizer steps; all are valued.
        clip: largest norm of the whole gradient.
        lr: factor on the learning rate per step, set before the step's first micro-batch, or just
            before ``optimizer.step()`` if `late_lr`.
        quantities: which of values, tokens, drift, ledger are asked for; training is always
            compared.
        truth: "formula": per-sample gradients and the direction written out; "game": all coalitions
            of the batch, each stepped with the real optimizer.
    """

    name: str
    about: str
    problem: Problem
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    formula: Formula = field(default_factory=Formula)
    micro: tuple[int, ...] = (6,)
    steps: int = 1
    clip: float | None = None
    lr: tuple[float, ...] = ()
    late_lr: bool = False
    quantities: tuple[str, ...] = ("values",)
    truth: str = "formula"

    def run(self, observer: "Observer | None" = None) -> "TrainingRun":
        """Train from the start, with `observer` looking on; the last step's gradients are left
        standing.
        """
        run, observer = TrainingRun(self), observer or Observer()
        observer.attach(run)
        run.train(observer)
        return run


class Observer:
    """What an engine may do around a training loop. This one does nothing."""

    def attach(self, run: "TrainingRun") -> None:
        """Model and optimizer are there, nothing has happened."""

    def micro(
        self, first: int, part: Batch, forward: Callable[[], Tensor]
    ) -> AbstractContextManager:
        """Around forward and backward of one micro-batch, whose first sample is number `first` of
        the step.
        """
        return nullcontext()

    def before_step(self) -> None:
        """Gradients are complete and clipped."""

    def after_step(self) -> None:
        """The optimizer has stepped; gradients still stand."""


class TrainingRun:
    """Model, optimizer and the loop of a case, as anybody would write them."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.case, self.problem = case, case.problem
        self.model = case.problem.model()
        self.optimizer = case.optimizer(self.model)
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.targets = {name: build() for name, build in case.problem.targets.items()}
        self.step, self.divisor = 0, 1.0

    def closures(self) -> dict[str, Callable[[], Tensor]]:
        """target -> its loss with the model as it is."""
        return {
            name: partial(self.problem.target_loss, self.model, batch)
            for name, batch in self.targets.items()
        }

    def train(self, observer: Observer) -> None:
        case = self.case
        for self.step in range(case.steps):
            if self.step:
                self.optimizer.zero_grad()
            batch = self.problem.batch(self.step)
            self.divisor = float(self.problem.count(batch))
            if not case.late_lr:
                self._set_lr()
            first = 0
            for length in case.micro:
                part = take(batch, first, first + length)

                def forward(part=part):
                    return self.problem.training_loss(self.model, part, self.divisor)

                with observer.micro(first, part, forward):
                    forward().backward()
                first += length
            if first != size(batch):
                raise ValueError(
                    f"case {case.name}: micro-batches of {first} samples for a batch of "
                    f"{size(batch)}"
                )
            if case.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), case.clip)
            if case.late_lr:
                self._set_lr()
            observer.before_step()
            self.optimizer.step()
            observer.after_step()

    def _set_lr(self) -> None:
        if self.case.lr:
            for group, base in zip(self.optimizer.param_groups, self.base_lr):
                group["lr"] = base * self.case.lr[self.step]


def state_of(run: TrainingRun) -> dict[str, Tensor]:
    """Everything that training leaves behind: weights, gradients, buffers, optimizer state, random
    state, who may be trained, who holds hooks.
    """
    model, optimizer = run.model, run.optimizer
    state: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for name, p in model.named_parameters():
        state[f"weight {name}"] = p.detach().clone()
        state[f"trainable {name}"] = torch.tensor(p.requires_grad)
        if p.grad is not None:
            state[f"gradient {name}"] = p.grad.clone()
        for key, value in optimizer.state.get(p, {}).items():
            state[f"optimizer {name} {key}"] = torch.as_tensor(value).clone()
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = buffer.clone()
    for name, module in model.named_modules():
        state[f"training {name}"] = torch.tensor(module.training)
        hooks = (
            len(module._forward_hooks)
            + len(module._forward_pre_hooks)
            + len(module._backward_hooks)
        )
        state[f"hooks {name}"] = torch.tensor(hooks)
    state["hooks of the optimizer"] = torch.tensor(
        len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    )
    return state
