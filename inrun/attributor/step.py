"""One optimizer step: opened by its first micro-batch, valued just before the weights move."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from inrun.attributor.balance import (
    NonFiniteError,
    check_balance,
    check_forward_balance,
    check_seen,
    common_factor,
    with_penalties,
)
from inrun.attributor.micro_batches import MicroBatches
from inrun.attributor.result import StepResult
from inrun.attributor.setting import Setting
from inrun.attributor.stack import DirectionStack, Key, LearningRates
from inrun.methods import Step
from inrun_kernels.backend import read_together

log = logging.getLogger(__name__)

#: steps after which elements without optimizer state are looked for again once there were none
_LOOK_FOR_STATE = 256


class OpenStep:
    """A step between its first micro-batch and the optimizer's step.

    Args:
        setting: what stays.
        number: optimizer steps before this one.
        valued: whether its samples are to be; otherwise nothing is recorded.

    Attributes:
        valued: whether its samples are.
        watched: they are not, because a direction must wait for the gradient and the route cannot;
            how far the known slopes are off is seen all the same.
        stack: the directions.
        passes: the micro-batches so far.
        samples: of all processes, known when the step is valued.
    """

    def __init__(self, setting: Setting, number: int, valued: bool):
        self.setting, self.number = setting, number
        options, parameters = setting.options, setting.parameters
        ask = valued and any(m.known_before for m in options.method)
        view = setting.optimizer_view() if ask else None
        waiting = setting.excess.waiting(view) if view else {m.name for m in options.method}
        self.watched = valued and bool(waiting) and not options.route.late_directions
        self.valued = valued and not self.watched
        self.stack = DirectionStack(options.method, waiting, setting.targets, parameters)
        late = bool(self.stack.late)
        self.passes = MicroBatches(
            setting.model, parameters, setting.processes, late, setting.buffers, setting.room
        )
        self.samples = 0
        self.penalties = torch.zeros(len(self.stack.keys), dtype=torch.float64)
        self._norms: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        if self.valued:
            self.passes.known = self.stack.before(view) if view else {}
            self.rates = LearningRates(parameters, len(self.stack.known))

    @contextmanager
    def micro_batch(
        self, ids: np.ndarray, forward: Callable[[], Tensor] | None, rows: Tensor | None
    ) -> Iterator[None]:
        """Around forward and backward of one micro-batch."""
        if not self.valued:
            yield
            return
        record = self.setting.options.route.record(self.passes, len(ids))
        with (
            self.setting.audits.around(self.passes, ids, self.number, rows) as recorder,
            self.passes.recorded(ids, forward, record, rows),
            recorder,
        ):
            yield
        self._norms = self.setting.parameters.norms()
        self._versions = self.setting.parameters.gradient_versions()

    def was_zeroed(self) -> bool:
        """Whether the gradient was zeroed without a step: an overflow of a loss scaler, a skipped
        batch. Its micro-batches are then void.
        """
        parameters = self.setting.parameters
        if not self.passes.done or parameters.gradient_versions() == self._versions:
            return False
        if any(norm != 0 for norm in read_together(parameters.norms()).values()):
            return False
        log.warning(
            "step %d: the gradient was zeroed without an optimizer step; %d micro-batches "
            "are dropped",
            self.number,
            len(self.passes.done),
        )
        return True

    # -- just before the weights move

    def finish(self) -> tuple[StepResult, Step]:
        """The values of the step's samples, and the step as the methods saw it.

        Raises:
            BalanceError, NonFiniteError, TargetError
        """
        gradients, c = self.gradients_and_factor()
        step = self.view(gradients, c)
        V = self.stack.whole(step, self.passes.known)
        self.stack.watch(step)
        values, dots, tokens = self.values(gradients, c, V)
        return self._result(step, c, values, dots, tokens), step

    def watch(self) -> dict[str, float]:
        """Sees in a step that cannot be valued how far the known slopes are off."""
        gradients = self.setting.parameters.gradients()
        if not gradients:
            return {}
        step = self.setting.optimizer_view(gradient=gradients)
        for method, target in [*self.stack.known, *self.stack.late]:
            method.watch(step, self.setting.targets[target])
        return self.setting.excess.note(step)

    def gradients_and_factor(self) -> tuple[dict[str, Tensor], float]:
        """Name -> G, and c: the factor between the samples' parts and what the optimizer gets."""
        setting, passes = self.setting, self.passes
        parameters, total = setting.parameters.by_name, setting.processes.total
        gradients = setting.parameters.gradients()
        if not gradients:
            raise RuntimeError(
                "optimizer.step() was called with no gradient; the backward must run inside "
                "`with attr.batch(...)`"
            )
        norms = read_together(setting.parameters.norms())
        if not all(map(math.isfinite, norms.values())):
            self._raise_non_finite(passes.non_finite())
        seen = passes.seen
        audits = setting.audits
        own = [passes.count, audits.refusal is not None, *(name in seen for name in parameters)]
        self.samples, refused, *uses = total(torch.tensor(own)).tolist()
        if refused:
            raise audits.refusal or audits.of_another()
        if passes.records:
            used = {name for name, count in zip(parameters, uses) if count}
            check_seen(norms, used, passes.way_out)
        dtypes = {name: p.dtype for name, p in parameters.items()}
        factor = common_factor(read_together(self._norms), norms, dtypes)
        scale = setting.parameters.loss_scale()
        if scale != 1.0:
            gradients = {name: g / scale for name, g in gradients.items()}
        return gradients, factor / setting.processes.size / scale

    def view(self, gradients: dict[str, Tensor], c: float) -> Step:
        """The step as the methods see it."""
        return self.setting.optimizer_view(
            gradient=gradients, n=self.samples, squares=lambda name: self._squares(name, c)
        )

    def _squares(self, name: str, c: float) -> Tensor | None:
        """``sum_i (c g_i)^2`` over the samples of all processes."""
        setting = self.setting
        if not setting.options.route.gives_squares:
            self._tell_coarse()
            return None
        found = setting.options.route.squares(self.passes, name)
        own = None if found is None else c * c * found
        if setting.processes.alone:
            return own
        p = setting.parameters.by_name[name]
        (everybodys,) = setting.processes.sums(
            [torch.zeros_like(p) if own is None else own.to(p.dtype)]
        )
        return everybodys

    def _tell_coarse(self) -> None:
        if not self.setting.told_coarse:
            self.setting.told_coarse = True
            log.warning(
                "step %d: the optimizer has no state yet for some elements, or one of its first "
                "steps; route=%r cannot average their slope over coalitions and takes the secant, "
                "so the values of the first steps are coarse. route='tap' has no such limit.",
                self.number,
                self.setting.options.route.kind,
            )

    def values(
        self, gradients: dict[str, Tensor], c: float, V: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[Key, list[Tensor]]]:
        """Values [k, n], their parts by parameter, and by token where those are asked for."""
        options, passes, keys = self.setting.options, self.passes, self.stack.keys
        total = self.setting.processes.total
        checked = options.is_due(options.intervals.balance, self.number)
        tokens: dict[Key, list[Tensor]] = {}
        if options.per_token or not options.route.by_parameter:
            now = {name: self.rates.at_present(name, v) for name, v in V.items()}
            tokens = {
                key: passes.token_values({name: v[k] for name, v in now.items()}, c)
                for k, key in enumerate(keys)
            }
        if not options.route.by_parameter:
            rows = [torch.cat([part.sum(1) for part in tokens[key]]) for key in keys]
            if checked:
                check_forward_balance(
                    torch.stack(rows), gradients, now, keys, passes.rounding, total
                )
            return torch.stack(rows), {}, tokens
        dots, nobodys = options.route.dots(passes, V), passes.penalty_dots(V)
        self.setting.audits.look(passes, self.number)
        if checked:
            parts = with_penalties(dots, nobodys)
            check_balance(parts, gradients, V, c, keys, passes.rounding, total)
        for name, d in nobodys.items():
            self.penalties += c * self.rates.at_present(name, d)[:, 0].cpu()
        dots = {name: c * self.rates.at_present(name, d) for name, d in dots.items()}
        nothing = torch.zeros(len(keys), passes.count, dtype=torch.float64)
        return reduce(torch.add, dots.values()) if dots else nothing, dots, tokens

    def _result(
        self,
        step: Step,
        c: float,
        values: Tensor,
        dots: dict[str, Tensor],
        tokens: dict[Key, list[Tensor]],
    ) -> StepResult:
        setting, keys, ids = self.setting, self.stack.keys, self.passes.ids
        bad = (~torch.isfinite(values)).any(0)
        sized = [*values.sum(1), *values.abs().sum(1), *self.penalties.to(values)]
        facts = torch.stack([bad.sum().to(values), *sized])
        count, *found = setting.processes.total(facts).tolist()
        sums, sizes, penalties = (
            found[at : at + len(keys)] for at in range(0, len(found), len(keys))
        )
        if count:
            self._raise_non_finite(ids[bad.cpu().numpy()].tolist())
        by_key = {key: values[k] for k, key in enumerate(keys)}
        in_order = [(m.name, t) for m in setting.options.method for t in setting.targets]
        # a second moment decays to zero only by underflow, over a thousand steps and more without
        # a gradient
        stateless = step.stateless_share()
        excess = setting.excess.note(step)
        setting.settled = set() if self.number % _LOOK_FOR_STATE == 0 else step.settled
        return StepResult(
            step=self.number,
            ids=ids,
            values={key: by_key[key] for key in in_order},
            per_parameter={key: {p: d[k] for p, d in dots.items()} for k, key in enumerate(keys)},
            tokens=tokens if setting.options.per_token else {},
            sums=dict(zip(keys, sums)),
            sizes=dict(zip(keys, sizes)),
            excess=excess,
            frozen={m.name for m, _ in self.stack.known} & excess.keys(),
            penalties=dict(zip(keys, penalties)),
            clip=c * setting.processes.size,
            stateless=stateless,
            audited=setting.audits.samples.pop(self.number, 0),
        )

    def _raise_non_finite(self, bad: list) -> None:
        everybody = "the whole batch"
        if not self.setting.processes.alone:
            everybody = "a sample of another process, or of the whole batch,"
        who = f"samples {', '.join(map(str, bad[:8]))}" if len(bad) else everybody
        raise NonFiniteError(
            f"step {self.number}: the gradient of {who} is not finite. The weights have not been "
            "changed and no value of this step was stored; zero the gradient and go on without "
            "these samples, or look at their text, the learning rate and the loss scale."
        )
