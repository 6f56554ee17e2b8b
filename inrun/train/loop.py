"""One run: from a config to trained weights, values and a log.

A seeded run on a CPU is reproducible bit for bit, with values or without them; killed at any moment
and resumed, it leaves the same weights and the same value tables as one that was never killed. What
makes it so: batches follow from (seed, step) alone, a checkpoint holds optimizer and random states,
and the store drops what came after the checkpoint.
"""

import math
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from inrun import models
from inrun.attributor import Attributor, Processes
from inrun.data.batch import Batch
from inrun.store import ValueStore
from inrun.train import checkpoint
from inrun.train.attribution import build_attributor
from inrun.train.config import RunConfig
from inrun.train.distributed import joined, refuse_processes, with_timeout
from inrun.train.endings import endings_told
from inrun.train.folder import RunFolder
from inrun.train.gradient import GradientPass
from inrun.train.inputs import RunInputs, prepared
from inrun.train.metrics import Speed, value_row
from inrun.train.non_finite import describe, divergence_told, refusal
from inrun.train.optim import build_optimizer, clip_gradients, lr_at
from inrun.train.precision import Precision
from inrun.train.prefetch import BatchStream
from inrun.train.record import RunRecord
from inrun.train.run_log import RunLog
from inrun.train.signals import Interrupted, Stop, stop_signal
from inrun.train.targets import build_targets


class Run:
    """A training run in its folder. Make one with `start` or `resume`, then call `train` once.

    Attributes:
        files: the run's folder. folder: its path. config: its RunConfig. step: optimizer steps
            done.
        model, optimizer, corpus (train split), evaluation (held-out chunks).
        batches: what each step trains on. gradient: forward and backward of a step.
        attributor: None without values.
    """

    @classmethod
    def start(cls, config: RunConfig, console: Console | None = None) -> "Run":
        """A new run: its corpus is prepared if need be, its folder must be new or left behind.

        Raises RunFolderError, ConfigError, PrecisionError, inrun.data.errors.DataError.
        """
        processes = joined(config.train.device)
        config = processes.gathered(config)[0]  # a name may hold the time
        files = RunFolder.of(config)
        processes.first(files.refuse_taken)
        return cls(files, config, None, processes, console)

    @classmethod
    def resume(cls, folder: str | Path, console: Console | None = None) -> "Run":
        """Go on with the run in `folder`, by its own resolved config.

        It goes on from its last checkpoint, or from the start if it has none. Raises
        RunFolderError, CheckpointError, StoreError.
        """
        files = RunFolder.open(folder)
        record = files.record()
        processes = joined(record.config.train.device)
        return cls(files, record.config, record, processes, console)

    def __init__(
        self,
        files: RunFolder,
        config: RunConfig,
        record: RunRecord | None,
        processes: Processes,
        console: Console | None,
    ):
        """record: of a run that is resumed; a new one makes its folder when all else is ready."""
        self.files, self.config, self.processes = files, config, processes
        self.console = (console or Console(stderr=True)) if processes.leads else Console(quiet=True)
        refuse_processes(config, processes)
        self._open = ExitStack()
        with endings_told(files, processes, config.train.timeout):
            try:
                self._make_ready(record)
            except BaseException as error:
                self._open.__exit__(type(error), error, error.__traceback__)
                raise

    def _make_ready(self, record: RunRecord | None) -> None:
        files, config, processes = self.files, self.config, self.processes
        resumed = files if record else None
        if record:
            files.own(processes, self._open)
        self.precision = Precision.choose(config.train.device, config.train.precision)
        corpus_folder = prepared(config, processes, self.console, resumed)
        processes = self.processes = with_timeout(processes, config.train.timeout)
        inputs = RunInputs.open(config, record, files, corpus_folder)
        self.corpus, self.evaluation = inputs.corpus, inputs.evaluation
        torch.manual_seed(config.seed)
        self.model = models.build_from(config.model_config()).to(self.precision.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        state = None
        if record:
            state = files.load_last(self.model, self.optimizer, processes, self.console)
        self.step = state["step"] if state else 0
        about = record or inputs.record(config, self.model.num_parameters(), self.precision)
        if not record:
            files.own(processes, self._open, new=True)
        self.attributor = self._attributor(inputs, about, state)
        self.gradient = GradientPass(self.model, config, self.precision, processes, self.attributor)
        if config.train.compile:
            self.model.compile(fullgraph=True)
        self._log = RunLog(files, config, self.step, self.console, processes)
        self._open.callback(self._log.close)
        self._speed = Speed(
            config.model_config(), config.data.block_size, self.precision.device, processes.size
        )
        pin = self.precision.device.type == "cuda"
        self.batches = BatchStream(
            self.corpus, inputs.chunks, config, processes, pin, self._values_so_far
        )
        self._open.callback(self.batches.close)
        if not record:
            processes.first(lambda: files.create(about, inputs.chunks))

    @property
    def folder(self) -> Path:
        return self.files.path

    def train(self) -> ValueStore | None:
        """Train to the end. Returns the values, opened for reading, or None without attribution.

        Raises Interrupted (a checkpoint was written), NonFiniteLossError, and the errors of
        `Attributor`. Whatever is raised, what was stored before stays, and `Run.resume(folder)`
        goes on from the last checkpoint.
        """
        train = self.config.train
        told = endings_told(self.files, self.processes, train.timeout)
        with told, self._open, stop_signal() as stop:
            if self.step == 0:
                self._evaluate()
            self._speed.restart()
            while self.step < train.steps:
                row = self._one_step()
                if self._due(self.config.log.every):
                    values = value_row(self.attributor, self.step - 1)
                    self._log.write({"iter": self.step, **row, **self._speed.row(), **values})
                if self._due(train.eval_every):
                    self._evaluate()
                signum = self._told_to_stop(stop)
                if self._due(train.checkpoint_every) or signum:
                    self.checkpoint()
                if signum:
                    raise Interrupted(
                        signum,
                        f"stopped by {signal.Signals(signum).name} after step {self.step} of "
                        f"{train.steps}; a checkpoint was written. "
                        f"Next: resume={self.folder} goes on from here",
                    )
        return self.files.values() if self.attributor else None

    def close(self) -> None:
        """Close logs and values; `train` does so at its end. Twice is allowed."""
        self._open.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def checkpoint(self) -> Path | None:
        """Write a checkpoint of the present state, values up to it made durable first.

        Returns its folder, in the first process.
        """
        extra = {
            "config": self.files.config_digest,
            "attribution": self.attributor.state_dict() if self.attributor else None,
        }
        self._log.sync()
        place, keep = self.files.checkpoints_folder, self.config.train.keep
        return self.processes.first(
            lambda: checkpoint.save(place, self.step, self.model, self.optimizer, extra, keep)
        )

    # -- one step

    def _one_step(self) -> dict[str, float]:
        """Forward, backward, update; the weights move only if loss and gradient are finite."""
        lr = lr_at(self.step, self.config.train.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        ids, batch = self.batches.at(self.step)
        total = int(self.processes.total(torch.tensor(batch.count())))
        singly = partial(self.gradient.chunk_by_chunk, batch)
        with divergence_told(self.step, ids, singly, self.folder):
            sums = self.gradient.whole(ids, batch, total)
            norm = clip_gradients(self.model, self.config.optim.clip)
            # the one wait for the device
            *losses, size = torch.cat([sums, norm.to(sums.dtype)[None]]).tolist()
            own = torch.tensor(math.fsum(losses), dtype=torch.float64)
            whole = float(self.processes.total(own))
            self._refuse_non_finite(ids, batch, losses, size, whole)
            loss = whole / total
            if self.attributor:
                self.attributor.annotate(loss=loss, tokens=total)
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.log.chunk_losses:
            self._log_chunk_losses(ids, batch, losses)
        self.step += 1
        self._speed.count(total)
        return {"train/loss": loss, "lr": lr, "grad_norm": size}

    def _refuse_non_finite(
        self, ids: np.ndarray, batch: Batch, losses: list[float], norm: float, whole: float
    ) -> None:
        """By the sum of all processes' losses and the norm, which are the same in each.

        So no process goes on alone.
        """
        if math.isfinite(whole) and math.isfinite(norm):
            return
        if len(losses) < len(ids):
            # sums of micro-batches do not say whose it is
            losses = self.gradient.chunk_by_chunk(batch)
        raise refusal(self.step, describe(ids, losses, norm, whole), self.folder)

    # -- between the steps

    def _due(self, every: int) -> bool:
        """Whether what happens every so many steps (0: at the end only) happens after this one."""
        last = self.step == self.config.train.steps
        return last or bool(every and self.step % every == 0)

    def _told_to_stop(self, stop: Stop) -> int:
        """The signal that stops the run after this step, 0 for none.

        Each process is told by itself, perhaps between other steps than the others.
        """
        told = bool(self.processes.total(torch.tensor(stop.signum or 0)))
        signum = max(self.processes.gathered(stop.signum or 0)) if told else 0
        return signum if self.step < self.config.train.steps else 0

    def _evaluate(self) -> None:
        if self.processes.leads:
            losses = self.evaluation.row(self.model, self.precision)
            self._log.write({"iter": self.step, **losses})

    def _log_chunk_losses(self, ids: np.ndarray, batch: Batch, sums: list[float]) -> None:
        means = [loss / max(count, 1) for loss, count in zip(sums, batch.counts().tolist())]
        self._log.write_chunk_losses(self.step, ids.tolist(), means)

    def _values_so_far(self) -> ValueStore:
        assert self.attributor is not None, "RunConfig refuses online without attribution"
        self.attributor.flush()
        return self.files.values()

    # -- construction

    def _attributor(
        self, inputs: RunInputs, record: RunRecord, state: dict[str, Any] | None
    ) -> Attributor | None:
        """The open attributor, None without values. state: of the checkpoint."""
        config = self.config.attribution
        if not config.on:
            return None
        targets = build_targets(
            self.model, inputs.targets, config.target_micro_batch, self.precision, self.processes
        )
        # a run killed before its first checkpoint has a store, perhaps, but nothing to go on from
        # but its start
        start = {"step": 0} if self.files.has_values else None
        resume = state["attribution"] if state else start
        where = (self.files.values_folder, record.for_store, self.processes)
        attributor = build_attributor(
            self.model, self.optimizer, targets, config, self.corpus, *where
        )
        self._open.enter_context(attributor)
        if resume is not None:
            attributor.load_state_dict(resume)
        return attributor
