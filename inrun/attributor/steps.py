"""The optimizer steps of a run, one after the other."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from inrun.attributor.hooks import StepError, StepHooks
from inrun.attributor.ledger import Ledger
from inrun.attributor.recording import Recorder
from inrun.attributor.result import StepResult
from inrun.attributor.setting import Setting
from inrun.attributor.step import OpenStep

log = logging.getLogger(__name__)


class Steps:
    """Opens a step at its first micro-batch, values it before the weights move, and keeps what it
    left when they have.

    Args:
        setting: what stays from step to step.
        recorder: writes the rows.

    Attributes:
        number: optimizer steps so far.
        open: the step that is going on.
        last: what the step taken last left.
        passed_over: steps without values, because the route could not wait for their direction.
    """

    def __init__(self, setting: Setting, recorder: Recorder):
        self.setting, self.recorder = setting, recorder
        self.ledger = Ledger(setting.targets, setting.options.method, setting.processes)
        self.number = 0
        self.open: OpenStep | None = None
        self.last: StepResult | None = None
        self.passed_over = 0
        self._pending: tuple[StepResult, float, int] | None = None
        self.hooks = StepHooks(setting.parameters.optimizers, self._before, self._after)

    @contextmanager
    def micro_batch(
        self, ids: np.ndarray, forward: Callable[[], Tensor] | None, rows: Tensor | None
    ) -> Iterator[None]:
        """Around forward and backward of one micro-batch."""
        if self.open and self.open.was_zeroed():
            self.drop()
        if self.open is None:
            self.refuse_half_a_step()
            self.recorder.open()
            self.open = self._begin()
        elif self.open.valued:
            self.setting.parameters.refuse_unvalued(gradient=False)
        self.recorder.numbering.check(ids)
        try:
            with self.hooks.closed(), self.open.micro_batch(ids, forward, rows):
                yield
        except BaseException:
            if self.open and self.open.valued:
                self.drop()
            raise

    def _begin(self) -> OpenStep:
        """First micro-batch of a step: the weights are those of the step."""
        setting = self.setting
        if setting.parameters.read_again():
            setting.targets.restart()
        valued = setting.options.valued(self.number)
        setting.targets.begin(valued)
        step = OpenStep(setting, self.number, valued)
        # a gradient that the step takes at its weights has given the loss that rows wait for
        self.ledger.close(self.recorder.for_all)
        return step

    def drop(self) -> None:
        """No step is going on."""
        self.open = None
        self.setting.buffers.release()

    def _before(self) -> set[int]:
        """Values the open step; ids of the optimizers that must take it."""
        step, parameters = self.open, self.setting.parameters
        if step is None:
            return set()
        try:
            if parameters.overflowed():
                log.warning("step %d: the loss scaler skips it: it has no values", self.number)
                return set()
            if step.valued and not step.passes.done:
                return set()
            if step.valued:
                parameters.refuse_unvalued(gradient=True)
                self._value(step)
            elif step.watched:
                self._pass_over(step)
            self.number += 1
            return parameters.moving() if step.valued else set()
        finally:
            self.drop()

    def _value(self, open_step: OpenStep) -> None:
        result, step = open_step.finish()
        options = self.setting.options
        if options.intervals.ledger:
            with_drift = options.is_due(options.intervals.ledger, self.number)
            self.ledger.open(result, step, options.method, with_drift)
        self._pending = (result, self._rate(), open_step.samples)

    def _rate(self) -> float:
        return float(self.setting.parameters.optimizers[0].param_groups[0]["lr"])

    def _pass_over(self, open_step: OpenStep) -> None:
        """A step whose direction would have to wait, on a route that cannot."""
        excess = open_step.watch()
        self.recorder.pass_over(self.number, self._rate(), excess)
        for quality in self.ledger.quality.values():
            quality.passed_over += 1
        if not self.passed_over:
            log.warning(
                "step %d: the slope that is known before the backward does not describe this step "
                "yet, and route=%r knows no other: its samples have no values, nor those of later "
                "steps until it does. route='tap' values every step",
                self.number,
                self.setting.options.route.kind,
            )
        self.passed_over += 1

    def _after(self) -> None:
        """The step was taken: what was valued is true."""
        assert self._pending is not None, "a step is valued before it is taken"
        self.last, lr, samples = self._pending
        self.ledger.note(self.last)
        self.recorder.write(self.last, self.setting.options.method, lr, samples)

    def refuse_half_a_step(self) -> None:
        """StepError if an optimizer did not step that was valued with others."""
        if self.hooks.awaited:
            refusal = self.hooks.refusal()
            self.hooks.awaited = set()
            self.ledger.waiting.clear()
            raise StepError(refusal)

    def complete_ledger(self, going_on: bool = False) -> None:
        """Close the waiting rows between steps: the weights have moved since they were opened.

        going_on: with the losses that the next step will find, to the bit. Its own gradients at
        these weights round otherwise than an evaluation without.
        """
        self.refuse_half_a_step()
        if self.ledger.waiting and self.open is None:
            setting = self.setting
            valued = going_on and setting.options.valued(self.number)
            setting.targets.look(valued)
            if going_on:
                OpenStep(setting, self.number, valued)
        self.ledger.close(self.recorder.for_all)
        if self.open is None:
            self.setting.targets.forget()
