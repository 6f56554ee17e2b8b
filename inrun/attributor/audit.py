"""When micro-batches are audited (`inrun.ghost.audit`), what is said of it, and what is refused."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from inrun.attributor.micro_batches import MicroBatches
from inrun.attributor.options import Audit
from inrun.attributor.parameters import RandomState
from inrun.attributor.routes import Route
from inrun.ghost import MixedSamplesError
from inrun.ghost.audit import Findings, audit
from inrun.ghost.audit_calls import CallRecorder
from inrun.ghost.audit_data import RowOwners
from inrun.ghost.audit_runs import CannotRunAgain
from inrun.ghost.tape import Use
from inrun.rules.factors import SampleAxisError

log = logging.getLogger(__name__)

#: an audit that takes longer is announced, in seconds
LONG = 5.0
#: audits of a run; past these, new uses of parameters are logged only
MOST = 64
#: micro-batches that are recorded for one audit before it is given up
TRIES = 8


class Audits:
    """The audits of a run: of its first micro-batch, and of the first one with each new use.

    A new use is found when its micro-batch is over, so the next one is audited.

    Args:
        option: what was asked for; None: no audits.
        route: by which samples' parts are taken.
        alone: this process trains alone, so that a refusal is raised where it is found; otherwise
            all processes raise it in the optimizer's step.

    Attributes:
        refusal: an error that waits for the other processes.
        samples: step -> samples whose values were proven, until they are asked for.
    """

    def __init__(self, option: Audit | None, route: Route, alone: bool):
        self.option, self.route, self.alone = option, route, alone
        self.refusal: Exception | None = None
        self.samples: Counter[int] = Counter()
        self._known: set[Use] = set()
        self._new: set[Use] = set()
        self._done = self._tries = 0
        self._over = option is None

    def _wanted(self, n: int) -> bool:
        return n > 1 and not self._over and (not self._done or bool(self._new))

    @contextmanager
    def around(
        self, passes: MicroBatches, ids: np.ndarray, step: int, rows: Tensor | None = None
    ) -> Iterator[AbstractContextManager]:
        """Around a micro-batch; gives the context to be entered after all others.

        Raises (at its end):
            MixedSamplesError, SampleAxisError: a sample's value depends on more than its data, or
                it could not be tested whether it does.
        """
        if len(ids) == 1 and self.option is not None:
            self.samples[step] += 1  # there is nobody else
        if not self._wanted(len(ids)):
            yield nullcontext()
            return
        recorder = CallRecorder(passes.parameters.by_name, passes.parameters.constants)
        random = RandomState(passes.parameters)
        with self.route.seen_by_modes():
            yield recorder
        try:
            self._audit(passes, recorder, random, ids, step, rows)
        except (MixedSamplesError, SampleAxisError) as error:
            if self.alone:
                raise
            self.refusal = error

    def _audit(
        self,
        passes: MicroBatches,
        recorder: CallRecorder,
        random: RandomState,
        ids: np.ndarray,
        step: int,
        rows: Tensor | None,
    ) -> None:
        recorder.recording.end()
        if not recorder.recording.is_whole:
            self._failed(step, "no forward of the loss was seen in the block")
            return
        parameters, began = passes.parameters.by_name, time.perf_counter()
        owners = RowOwners(len(ids), rows)
        assert self.option is not None, "audits are wanted"
        uses: set[Use] = set()
        try:
            with passes.again(passes.done[-1]):
                found = audit(
                    recorder.recording,
                    parameters,
                    owners,
                    self.route.audit_dots(owners, uses),
                    random.restore,
                    self.option.groups,
                    lambda tests: _tell_if_long(step, tests, time.perf_counter() - began),
                )
        except CannotRunAgain as error:
            self._failed(step, f"the batch cannot be run again from its operations ({error})")
            return
        if not found.finite:
            self._failed(step, "a sample has NaN or infinity")
            return
        if found.leaks:
            raise MixedSamplesError(_mixed(found, ids))
        if found.unproven:
            raise SampleAxisError(_unproven(found, ids))
        self._passed(step, len(ids), found, passes.uses | uses, recorder.recording.cut)

    def _passed(self, step: int, n: int, found: Findings, uses: set[Use], cut: bool) -> None:
        self._known |= uses
        self._new -= self._known
        self._done, self._tries = self._done + 1, 0
        self.samples[step] += n
        log.info("step %d: audited %d samples in %d tests: each alone", step, n, found.tests)
        if found.untested:
            why = ": part of the backward runs in code that is not seen" if cut else ""
            log.warning(
                "step %d: the audit could not test parameters %s%s; whether their values are of "
                "the right samples is unproven",
                step,
                _some(found.untested),
                why,
            )

    def _failed(self, step: int, why: str) -> None:
        """This micro-batch was not audited; the next one may be."""
        self._tries += 1
        if self._tries >= TRIES:
            self._give_up(step, why)

    def _give_up(self, step: int, why: str) -> None:
        self._over = True
        log.warning("step %d: not audited: %s; no further audit is tried", step, why)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what was audited is not audited again."""
        known, new = ([[o, list(p), f] for o, p, f in sorted(s)] for s in (self._known, self._new))
        return {"done": self._done, "known": known, "new": new}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, also after JSON."""
        self._done = int(state.get("done", 0))
        self._known, self._new = (
            {(o, tuple(p), f) for o, p, f in state.get(key, ())} for key in ("known", "new")
        )

    def of_another(self) -> MixedSamplesError:
        """What is raised where another process refuses its micro-batch."""
        return MixedSamplesError(
            "the audit refused the micro-batch of another process; its message says why"
        )

    def look(self, passes: MicroBatches, step: int) -> None:
        """At the end of a step: parameters that were used in a new way are audited next."""
        if self._over or not self._done:
            return
        new = passes.uses - self._known
        if self._new and not new:  # it did not come back: wait no longer
            self._failed(step, f"a use of {_some(sorted(_roots(self._new)))} did not come again")
        self._new |= new
        if self._new and self._done >= MOST:
            self._give_up(step, f"{MOST} audits were made, and there are new uses of parameters")


def _roots(uses: set[Use]) -> set[str]:
    return {root for _, roots, _ in uses for root in roots}


def _some(names: list[str]) -> str:
    shown = ", ".join(name for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _tell_if_long(step: int, tests: int, seconds: float) -> None:
    if tests * seconds > LONG:
        log.info(
            "step %d: the audit of the first batch runs it %d times more, about %.0f s; fewer "
            "with audit=Audit(groups=4), none with audit=False",
            step,
            tests,
            tests * seconds,
        )


def _mixed(found: Findings, ids: np.ndarray) -> str:
    """What is said where samples are mixed."""
    names = _some([name or "(all together)" for name in found.leaks])
    assert found.moved is not None, "a leak has a sample"
    return (
        f"parameter {names}: a sample's value does not depend on its own data alone. The audit ran "
        f"the batch again with other samples' data changed, and the part of sample "
        f"{ids[found.moved]} moved by {max(found.leaks.values()):.2g} of what changed samples "
        "did. Either rows are taken for another sample's: samples not along axis 0 "
        "(batch_first=True), pairs, nodes or tokens put together otherwise than sample by sample, "
        "or not one id per sample. Or the loss compares samples: in-batch negatives (contrastive), "
        "a penalty across samples, packed documents whose mask lets them see each other. In the "
        "first case say whose each row is, attr.batch(ids, rows=<a sample 0..n-1 per row>), or "
        "train with one sample per micro-batch, route='whole'. In the second no sample has a "
        "gradient of its own, and there is no value to be had of this loss. The data were taken to "
        f"be in tensors of shape {_shapes(found)}: one that holds none of the samples' data "
        "(class weights, positions) must be a buffer of the model."
    )


def _unproven(found: Findings, ids: np.ndarray) -> str:
    """What is said where the data of samples moved nothing."""
    who = _some([str(ids[i]) for i in found.unproven])
    where = (
        f"in tensors of shape {_shapes(found)}"
        if found.shapes
        else f"and no tensor of numbers or ids has {len(ids)} rows along axis 0"
    )
    return (
        f"it is not known which rows of the batch belong to sample {who}: its data were looked for "
        f"{where}, and no change of them moved its value. Samples must lie along axis 0 "
        "(batch_first=True), one id per sample; or say whose each row is, attr.batch(ids, rows=<a "
        "sample 0..n-1 per row>); or train with one sample per micro-batch, route='whole'. "
        "audit=False values the batch unproven."
    )


def _shapes(found: Findings) -> str:
    return ", ".join(str(list(shape)) for shape in found.shapes[:6])
