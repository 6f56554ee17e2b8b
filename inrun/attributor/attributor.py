"""Values of training samples, from outside any training loop.

The model is not wrapped and the optimizer is not replaced: uses of parameters are seen while the
context is open, everything else happens in a hook just before the optimizer moves the weights. With
the default route the trained weights are the same bits with and without attribution.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrun.attributor.ids import ids_of
from inrun.attributor.interactions import interactions
from inrun.attributor.options import Audit, Intervals, Options
from inrun.attributor.processes import Processes
from inrun.attributor.recording import Recorder, Recording
from inrun.attributor.result import StepResult
from inrun.attributor.routes import Route
from inrun.attributor.rows import owners_of
from inrun.attributor.setting import Setting
from inrun.attributor.step import OpenStep
from inrun.attributor.steps import Steps
from inrun.ghost import GradientBuffers
from inrun.methods import Method
from inrun.store import ValueStore
from inrun_kernels import memory

log = logging.getLogger(__name__)


class Attributor:
    """Values every sample of every optimizer step for one or several targets.

    Args:
        model: any nn.Module; its trainable parameters that the optimizer updates are tracked. Of a
            DistributedDataParallel the module inside, and its processes: every process then has an
            Attributor, for its own samples, and all make the same calls.
        optimizer: the optimizer whose step uses the gradients, or several that step together.
        targets: name -> closure that evaluates a validation loss of `model` and returns the scalar.
            Evaluated once per step or more; it must give the same loss for the same weights if the
            ledger is to telescope.
        method: "path" | "first_order" | "second_order", an object such as ``Path(nodes=3)``, or a
            list of them. The first one is what `last` shows.
        route: "tap" (a rule per operation; exact, the same bits as without values), "fused" or
            ``Fused(memory=...)`` (dots in the backward of linear layers and head; faster),
            "replay" (keeps nothing, runs the batch once more), "forward" (any architecture),
            "whole" (one sample per micro-batch, whatever the model), or "compiled" (for models
            under torch.compile).
        store: folder for the values, or a `Recording`; None keeps only `last`.
        params: regular expression; only parameters whose name it finds are valued.
        every: value every k-th step only.
        intervals: how often targets' gradients are taken anew, drift is measured, and the balance
            is checked; see `Intervals`.
        audit: test on the first micro-batch, run 5 to 9 times more, that a sample's value depends
            on its own data alone. ``Audit(groups=4)`` takes fewer passes; False: do not.
        per_token: also value every predicted token; needs ``batch(ids, forward=...)``.
        processes: those that train together, where `model` is no DistributedDataParallel.

    With several processes the store is one folder for all; values and `last` are of this process's
    samples; balance, ledger and loss are of all of them.

    Attributes:
        parameters: name -> tracked parameter.

    Raises:
        ValueError, UnknownOptimizerError: at construction, for options that cannot work.
        UncoveredUseError, MixedSamplesError: in the forward, for an operation without a rule, or
            one that mixes samples.
        MixedSamplesError, SampleAxisError: at the end of the first batch, by the audit.
        BalanceError, NonFiniteError, StepError: in ``optimizer.step()``, before the weights are
            touched; StepError also where an optimizer did not step that was valued.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> x, val = torch.randn(8, 3), torch.randn(4, 3)
    >>> attr = Attributor(model, optimizer, {"val": lambda: model(val).square().mean()})
    >>> with attr.batch(range(8)):
    ...     model(x).square().mean().backward()
    >>> optimizer.step()
    >>> attr.last["val"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        targets: Mapping[str, Callable[[], Tensor]],
        method: str | Method | Sequence[str | Method] = "path",
        *,
        route: str | Route = "tap",
        store: str | Path | Recording | None = None,
        params: str | None = None,
        every: int = 1,
        intervals: Intervals | None = None,
        audit: Audit | bool | None = True,
        per_token: bool = False,
        processes: Processes | None = None,
    ):
        said: dict[str, Any] = {"method": method, "route": route, "store": store}
        said |= {"params": params, "every": every, "audit": audit}
        said |= {"per_token": per_token, "processes": processes}
        self.options = Options(**said, intervals=intervals or Intervals())
        setting = self._setting = Setting.of(model, optimizer, targets, self.options)
        self.methods, self.targets = self.options.method, setting.targets
        self.optimizers = setting.parameters.optimizers
        self.parameters, self.processes = setting.parameters.by_name, setting.processes
        about = self.options.about(list(targets))
        self.recorder = Recorder(self.options.store, about, self.processes)
        self._steps = Steps(setting, self.recorder)
        self.ledger = self._steps.ledger
        self._closed = False

    # -- what a training loop calls

    @contextmanager
    def batch(
        self, ids, forward: Callable[[], Tensor] | None = None, *, rows=None
    ) -> Iterator[None]:
        """Around forward and backward of one micro-batch.

        Args:
            ids: one per sample [n], in the order of axis 0: integers, strings or bytes. In the
                store names have numbers, and stand in the column `id` of the samples.
            forward: evaluates the micro-batch's loss again and returns it; needed for
                per_token=True, route="replay" and route="forward" only.
            rows: whose each row is, a place 0..n-1 of `ids` per row [r], where the rows of the
                data are not the samples in order: both halves of pairs in one tensor, nodes of
                graphs, tokens without padding, documents packed in a row [1, t], samples along axis
                1. It holds for tensors from outside the block of that length along axis 0, or along
                axis 1 after an axis of 1.

        Raises:
            ValueError: ids are of another or of several types, `forward` is missing, or `rows` do
                not give every sample a row.
            SampleAxisError: no tensor has as many rows as there are ids, or as `rows` has.
            StoreError: the folder of `store` holds values already, and no state was loaded.
        """
        if self._closed:
            raise RuntimeError("this Attributor is closed")
        if forward is None and self.options.runs_again:
            raise ValueError(
                "per_token=True, route='replay' and route='forward' need attr.batch(ids, "
                "forward=lambda: <the loss that is backpropagated>)"
            )
        ids = ids_of(ids)
        if rows is not None and not self.options.route.takes_rows:
            raise ValueError(
                f"route={self.options.route.kind!r} takes samples along axis 0 only, not rows=; "
                "use route='tap', uncompiled"
            )
        with self._steps.micro_batch(ids, forward, owners_of(rows, len(ids))):
            yield

    def annotate(self, **columns: float | int | None) -> None:
        """Columns for the store's row of the coming step, the same ones every step."""
        self.recorder.annotate(columns)

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self._steps.number

    @property
    def last_step(self) -> StepResult | None:
        """What the step just taken left; None before the first one."""
        return self._steps.last

    @property
    def last(self) -> dict[str, Tensor]:
        """Target -> values [n] of the step just taken, in the order of the ids.

        In float64, by the first method; positive lowered the target's loss.
        """
        if self.last_step is None:
            raise RuntimeError("no step has been valued yet")
        return {name: self.last_step.values[self.methods[0].name, name] for name in self.targets}

    @torch.no_grad()
    def interactions(self, target: str | None = None) -> Tensor:
        """Pairwise Shapley interaction index of the current step's samples [n, n].

        ``-eta^2 g_i^T H_L g_j``, of the quadratic utility; eta is the update's secant. Call it
        between the backward and ``optimizer.step()``, with a method that keeps a tape
        (second_order, path). Negative: the two are redundant.
        """
        step = self._steps.open or OpenStep(self._setting, self.step, valued=False)
        chosen = self.targets[target if target is not None else next(iter(self.targets))]
        return interactions(step, chosen, self.methods[0])

    def flush(self) -> None:
        """Complete the ledger at the present weights, and make all processes' rows durable."""
        self._steps.complete_ledger()
        self.recorder.flush()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint taken between two steps.

        Flushes the store first, so that nothing before the checkpoint can be missing.
        """
        if self._steps.open:
            raise RuntimeError(
                "state_dict() is called between optimizer steps, not after a backward whose step "
                "has not been taken"
            )
        self._steps.complete_ledger(going_on=True)
        self.flush()
        # a resumed run has no gradient to reuse, so this one must not have one either
        self.targets.restart()
        setting = self._setting
        kept = {"excess": setting.excess.state(), "audits": setting.audits.state()}
        return {"step": self.step, **kept, **self.ledger.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, before the first batch; the store drops what came after it.

        Raises:
            RuntimeError: a batch was valued already.
            StoreError: the store's folder holds no run, or one of other targets or methods.
        """
        if self._steps.open or self.step or self.recorder.writer:
            raise RuntimeError("load_state_dict() is called before the first batch")
        self._steps.number = int(state["step"])
        self.ledger.load(state)
        self._setting.excess.load(state.get("excess", {}))
        self._setting.audits.load(state.get("audits", {}))
        self.recorder.open(self.step)

    def close(self) -> ValueStore | None:
        """Complete the ledger, remove the hooks, and open the store for reading.

        What is to be doubted of the values is logged (`ValueStore.said`). Closing twice is allowed.
        """
        if not self._closed:
            self._remove_hooks()
            self._steps.complete_ledger()
            self._setting.buffers = GradientBuffers()
            memory.release()
            self.recorder.open()
            self.recorder.close()
            for line in self.ledger.said() if self.processes.leads else ():
                log.warning(line)
        return self.recorder.read()

    def __enter__(self) -> "Attributor":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self.close()
        elif not self._closed:  # the run broke: keep what is whole, evaluate nothing more
            self._remove_hooks()
            self.recorder.close(together=False)

    def _remove_hooks(self) -> None:
        self._closed = True
        self._steps.hooks.remove()
        self._steps.drop()
