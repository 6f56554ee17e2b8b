"""The gradient of a step: a logical batch through the model, in micro-batches, with values."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from inrun.attributor import Attributor, Processes
from inrun.data.batch import Batch, slices
from inrun.models import LanguageModel
from inrun.train.config import RunConfig
from inrun.train.precision import Precision


class GradientPass:
    """Forward and backward of a run's steps.

    Args:
        model: whose `.grad` is added to.
        config: of the run.
        precision: of the model's passes.
        processes: that share the logical batch.
        attributor: that values the samples, None without values.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        precision: Precision,
        processes: Processes,
        attributor: Attributor | None,
    ):
        self._model, self._config, self._precision = model, config, precision
        self._processes, self._attributor = processes, attributor

    def whole(self, ids: np.ndarray, batch: Batch, total: int) -> Tensor:
        """The step's gradient, averaged over the processes.

        Args:
            ids: of this process's chunks.
            batch: these chunks.
            total: targets of the whole logical batch.

        Returns:
            Sums of token losses, detached: one for each micro-batch, or for each sample where the
            log of chunks wants them.
        """
        cuts = list(slices(len(ids), self._config.train.micro_batch))
        return torch.cat([self.part(ids[s], batch[s], total, s is cuts[-1]) for s in cuts])

    def part(self, ids: np.ndarray, part: Batch, total: int, last: bool) -> Tensor:
        """Add a micro-batch's share; the last one of a step averages over the processes."""
        share = total / self._processes.size
        part = part.to(self._precision.device)

        def forward() -> Tensor:
            with self._precision.autocast():
                each = self._config.log.chunk_losses
                return part.losses(self._model) if each else part.loss(self._model)[None]

        with self._valued(ids, lambda: forward().sum() / share):
            losses = forward()
            (losses.sum() / share).backward()
            if last:
                self._processes.average(
                    [p.grad for p in self._model.parameters() if p.grad is not None]
                )
        return losses.detach()

    @torch.no_grad()
    def chunk_by_chunk(self, batch: Batch) -> list[float]:
        """The sum of token losses of each sample, computed one by one, without a gradient."""
        with self._precision.autocast():
            single = [part.to(self._precision.device) for part in batch.split(1)]
            return [float(part.losses(self._model)) for part in single]

    def _valued(self, ids: np.ndarray, again: Callable[[], Tensor]) -> AbstractContextManager:
        if self._attributor is None:
            return nullcontext()
        values = self._config.attribution
        # also where it is needed only if what is kept finds no room
        runs_again = values.runs_again or any(m.may_wait for m in values.method)
        return self._attributor.batch(ids, forward=again if runs_again else None)
