"""One run: from a config to trained weights, values and a log, interrupted and resumed as often as
need be.

A seeded run on a CPU is reproducible bit for bit, with values or without them; killed at any moment
and resumed, it leaves the same weights and the same value tables as one that was never killed. What
makes it so: batches follow from (seed, step) alone, a checkpoint holds optimizer and random states,
and the store drops what came after the checkpoint.
"""

import itertools
import json
import math
import signal
import subprocess
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from inrun import models
from inrun.attributor import Attributor, Processes
from inrun.config import require
from inrun.data.batch import Batch, batch_of, slices
from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from inrun.data.sampler import Sampler
from inrun.files import read_json, write_json
from inrun.progress import live_line
from inrun.store import STORE_FILE, ValueStore
from inrun.train import checkpoint
from inrun.train.attribution import build_attributor, build_targets, target_batch, target_digest
from inrun.train.config import RunConfig
from inrun.train.distributed import joined
from inrun.train.evaluation import EvaluationSet
from inrun.train.log import JsonLines, Sink, Terminal, Wandb
from inrun.train.metrics import Speed, value_row
from inrun.train.online import decide
from inrun.train.optim import build_optimizer, clip_gradients, lr_at
from inrun.train.precision import Precision
from inrun.train.prefetch import Prefetcher
from inrun.train.selection import ChunkSelection, read_chunks, write_chunks
from inrun.train.signals import Interrupted, stop_signal

FORMAT = 1
RUN_FILE = "run.json"
CHUNKS_FILE = "chunks.parquet"


class RunFolderError(RuntimeError):
    """The run's folder is taken, is no run, or its corpus is not the one that the run began
    with.
    """


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the weights were not touched."""


class Run:
    """A training run in its folder. Make one with `start` or `resume`, then call `train` once.

    Attributes:
        folder: where everything of the run is. config: its RunConfig. step: optimizer steps done.
            model, optimizer, corpus (train split).
        attributor: None without values.
    """

    @classmethod
    def start(cls, config: RunConfig, console: Console | None = None) -> "Run":
        """A new run: its corpus is prepared if need be, its folder must not exist.

        Raises RunFolderError, ConfigError, PrecisionError, inrun.data.errors.DataError.
        """
        processes = joined(config.train.device)
        config = processes.gathered(config)[0]  # a name may hold the time
        folder = Path(config.runs) / config.name

        def refuse_taken():
            if folder.exists():
                raise RunFolderError(
                    f"{folder} exists already. Next: go on with it by resume={folder}, "
                    "choose another name=..., or delete the folder"
                )

        processes.first(refuse_taken)
        return cls(folder, config, console, about=None, processes=processes)

    @classmethod
    def resume(cls, folder: str | Path, console: Console | None = None) -> "Run":
        """Go on with the run in `folder`, by its own resolved config, from its last checkpoint (or
        from the start, if it has none).

        Raises RunFolderError, CheckpointError, StoreError.
        """
        folder = Path(folder)
        path = folder / RUN_FILE
        if not path.is_file():
            runs = sorted(str(found.parent) for found in folder.parent.glob(f"*/{RUN_FILE}"))
            known = f"; runs beside it: {', '.join(runs[:8])}" if runs else ""
            raise RunFolderError(
                f"{folder} is no run: it has no {RUN_FILE}. Next: give the folder of a run{known}"
            )
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            config = RunConfig.from_mapping(about["config"])
        except (KeyError, ValueError) as error:
            raise RunFolderError(
                f"{path} is damaged or of another version ({error}). Next: restore it, or "
                "start anew"
            ) from error
        return cls(folder, config, console, about, joined(config.train.device))

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        console: Console | None,
        about: dict[str, Any] | None,
        processes: Processes,
    ):
        console = (console or Console(stderr=True)) if processes.leads else Console(quiet=True)
        self.folder, self.config, self.console, self.processes = folder, config, console, processes
        self._refuse_processes()
        self.precision = Precision.choose(config.train.device, config.train.precision)
        with live_line(console, "reading") as report:
            corpus_folder = processes.one_by_one(
                lambda: prepare(config.data, config.data_root, report)
            )
        self.corpus = Corpus.open(corpus_folder, "train", verify=config.train.verify)
        model_config = config.model_config()
        self.corpus.check(n_vocab=model_config.vocab_size)
        if about is not None and about["corpus_digest"] != self.corpus.digest:
            raise RunFolderError(
                f"{folder} began with another corpus (digest {about['corpus_digest'][:12]}, "
                f"now {self.corpus.digest[:12]} in "
                f"{corpus_folder}). Next: restore that corpus, or start a new run with another name"
            )
        self.evaluation = EvaluationSet.choose(corpus_folder, config.train, config.seed)
        self._own_targets = {
            target.name: target_digest(target_batch(corpus_folder, target, config.seed))
            for target in config.attribution.targets
            if config.attribution.on and target.path
        }
        if about is not None and about.get("own_targets", {}) != self._own_targets:
            raise RunFolderError(
                f"{folder} began with other documents behind the targets "
                f"{', '.join(sorted(self._own_targets))}. Next: restore the files, "
                "or start a new run with another name"
            )

        torch.manual_seed(config.seed)
        self.model = models.build_from(model_config).to(self.precision.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.chunks = self._chunks(about)
        self.step = 0
        state = self._load_checkpoint() if about is not None else None
        targets = None
        if config.attribution.on:
            targets = build_targets(
                self.model,
                corpus_folder,
                config.attribution,
                config.seed,
                self.precision,
                config.train.separate_documents,
                processes,
            )
        if about is None:
            processes.first(self._describe)
            about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        self._open = ExitStack()
        self.attributor: Attributor | None = None
        if targets:
            store = folder / "values"
            # a run killed before its first checkpoint has a store, perhaps, but nothing to go on
            # from but its start
            resume = (
                state["attribution"]
                if state
                else ({"step": 0} if (store / STORE_FILE).exists() else None)
            )
            described = {key: about[key] for key in ("config", "corpus_digest", "git_revision")}
            self.attributor = build_attributor(
                self.model,
                self.optimizer,
                targets,
                config.attribution,
                self.corpus,
                store,
                described,
                resume,
                processes,
            )
            self._open.enter_context(self.attributor)
        if config.train.compile:
            self.model.compile(fullgraph=True)
        self._open_logs()
        self._decided: int | None = None
        self.sampler = self._sampler(self.chunks)
        self._ahead = Prefetcher(self._load)
        self._open.callback(self._ahead.close)

    def train(self) -> ValueStore | None:
        """Train to the end. Returns the store of values, opened for reading, or None without
        attribution.

        Raises Interrupted (a checkpoint was written), NonFiniteLossError, and the errors of
        `Attributor`. Whatever is raised, what was stored before stays, and `Run.resume(folder)`
        goes on from the last checkpoint.
        """
        train = self.config.train
        with self._open, stop_signal() as stop:
            if self.step == 0:
                self._evaluate()
            self._speed.restart()
            while self.step < train.steps:
                row = self._one_step()
                last = self.step == train.steps
                if self.step % self.config.log.every == 0 or last:
                    self._log(
                        {
                            "iter": self.step,
                            **row,
                            **self._speed.row(),
                            **value_row(self.attributor, self.step - 1),
                        }
                    )
                if last or (train.eval_every and self.step % train.eval_every == 0):
                    self._evaluate()
                # each process is told by itself, perhaps between other steps than the others
                told = bool(self.processes.total(torch.tensor(stop.signum or 0)))
                signum = max(self.processes.gathered(stop.signum or 0)) if told else 0
                stopped = signum and not last
                if (
                    last
                    or stopped
                    or (train.checkpoint_every and self.step % train.checkpoint_every == 0)
                ):
                    self.checkpoint()
                if stopped:
                    raise Interrupted(
                        signum,
                        f"stopped by {signal.Signals(signum).name} after step {self.step} of "
                        f"{train.steps}; a checkpoint was written. "
                        f"Next: resume={self.folder} goes on from here",
                    )
        return ValueStore(self.folder / "values") if self.attributor else None

    def close(self) -> None:
        """Close logs and values; `train` does so at its end. Twice is allowed."""
        self._open.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def checkpoint(self) -> Path | None:
        """Write a checkpoint of the present state, values up to it made durable first. Returns its
        folder, in the first process.
        """
        extra = {"attribution": self.attributor.state_dict() if self.attributor else None}
        for sink in self._sinks:
            if isinstance(sink, JsonLines):
                sink.sync()
        place, keep = self.folder / "checkpoints", self.config.train.keep
        return self.processes.first(
            lambda: checkpoint.save(place, self.step, self.model, self.optimizer, extra, keep)
        )

    # -- one step

    def _one_step(self) -> dict[str, float]:
        """Forward, backward, update; the weights move only if loss and gradient are finite."""
        train, step = self.config.train, self.step
        lr = lr_at(step, train.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        ids = self._sample_ids(step)
        batch = self._ahead.get(ids, self._following(step))
        total = int(self.processes.total(torch.tensor(batch.count())))
        cuts = list(slices(len(ids), train.micro_batch))
        parts = [self._backward(ids[rows], batch[rows], total, rows is cuts[-1]) for rows in cuts]
        losses = torch.cat(parts)
        norm = clip_gradients(self.model, self.config.optim.clip)
        numbers = torch.cat(
            [losses, norm.to(losses.dtype)[None]]
        ).tolist()  # the one wait for the device
        whole = float(
            self.processes.total(torch.tensor(math.fsum(numbers[:-1]), dtype=torch.float64))
        )
        self._refuse_non_finite(ids, batch, numbers[:-1], numbers[-1], whole)
        loss = whole / total
        if self.attributor:
            self.attributor.annotate(loss=loss, tokens=total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.log.chunk_losses:
            counts = (batch.targets != models.IGNORED_TARGET).sum(1).tolist()
            means = [value / max(count, 1) for value, count in zip(numbers, counts)]
            told = self.processes.gathered((ids.tolist(), means))
            if self._chunk_losses:
                every_id, every_loss = (
                    list(itertools.chain.from_iterable(column)) for column in zip(*told)
                )
                self._chunk_losses.write({"step": step, "ids": every_id, "losses": every_loss})
        self.step += 1
        self._speed.count(total)
        return {"train/loss": loss, "lr": lr, "grad_norm": numbers[-1]}

    def _sample_ids(self, step: int) -> np.ndarray:
        """Ids of this process's chunks in the step; at a decision of `config.online`, or after a
        resume past one, what may be drawn is looked up in the store.
        """
        decision = self.config.online.decision(step)
        if decision != self._decided:
            self.attributor.flush()
            with ValueStore(self.folder / "values") as store:
                chosen = decide(self.config.online, decision, store, self.chunks)
            self._decided, self.sampler = decision, self._sampler(chosen)
        return self._own(self.sampler.batch_at(step))

    def _own(self, ids: np.ndarray) -> np.ndarray:
        """Those of a logical batch that this process trains on."""
        return np.array_split(ids, self.processes.size)[self.processes.rank]

    def _following(self, step: int) -> np.ndarray | None:
        """Ids of this process's chunks in the next step, if they are known by now."""
        known = (
            step + 1 < self.config.train.steps
            and self.config.online.decision(step + 1) == self._decided
        )
        return self._own(self.sampler.batch_at(step + 1)) if known else None

    def _load(self, ids: np.ndarray) -> Batch:
        batch = batch_of(self.corpus, ids, self.config.train.separate_documents)
        return batch.pinned() if self.precision.device.type == "cuda" else batch

    def _sampler(self, chunks: ChunkSelection) -> Sampler:
        return Sampler(chunks.ids, self.config.train.batch_size, self.config.seed, chunks.weights)

    def _backward(self, ids: np.ndarray, part, total: int, last: bool) -> Tensor:
        """Add the micro-batch's share of the step's gradient, which the last one averages over
        processes; returns the sum of token losses, detached: [1], or of each sample [n] where the
        log of chunks wants them.
        """
        share = total / self.processes.size
        part = part.to(self.precision.device)
        with_values = self.config.attribution

        def forward() -> Tensor:
            with self.precision.autocast():
                each = self.config.log.chunk_losses
                return part.losses(self.model) if each else part.loss(self.model)[None]

        if self.attributor:
            again = (lambda: forward().sum() / share) if with_values.runs_again else None
            context = self.attributor.batch(ids, forward=again)
        else:
            context = nullcontext()
        with context:
            losses = forward()
            (losses.sum() / share).backward()
            if last:
                self.processes.average(
                    [p.grad for p in self.model.parameters() if p.grad is not None]
                )
        return losses.detach()

    def _refuse_non_finite(
        self, ids: np.ndarray, batch: Batch, losses: list[float], norm: float, whole: float
    ) -> None:
        """By the sum of all processes' losses and the norm, which are the same in each: none goes
        on alone.
        """
        if math.isfinite(whole) and math.isfinite(norm):
            return
        if len(losses) < len(
            ids
        ):  # sums of micro-batches: once more, chunk by chunk, to say whose it is
            with torch.no_grad(), self.precision.autocast():
                single = [
                    batch[rows].to(self.precision.device).losses(self.model)
                    for rows in slices(len(ids), 1)
                ]
            losses = [float(loss) for loss in single]
        bad = [int(i) for i, loss in zip(ids, losses) if not math.isfinite(loss)]
        what = (
            f"the loss of chunk {', '.join(map(str, bad[:8]))} is not finite"
            if bad
            else "the loss of a chunk of another process is not finite"
            if not math.isfinite(whole)
            else f"the losses are finite, but the gradient's norm is {norm} (chunks "
            f"{', '.join(map(str, ids[:8]))}, ...)"
        )
        raise NonFiniteLossError(
            f"step {self.step}: {what}. The weights were not touched, and what was stored "
            "before stays. Next: look at the chunk "
            "(Corpus.text), lower optim.lr or raise optim.warmup, and go on from the last "
            f"checkpoint with a new run or resume={self.folder}"
        )

    # -- what is told

    def _evaluate(self) -> None:
        if not self.processes.leads:
            return
        self._log({"iter": self.step, **self.evaluation.row(self.model, self.precision)})

    def _log(self, row: dict[str, Any]) -> None:
        for sink in self._sinks:
            if sink is not self._chunk_losses:
                sink.write(row)

    # -- construction

    def _refuse_processes(self) -> None:
        """What one process does and several do not."""
        size, train = self.processes.size, self.config.train
        model = self.config.model_config()
        if size == 1:
            return
        next_step = "Next: change it, or start a single process"
        require(
            f"{size} processes",
            (
                train.batch_size >= size,
                f"train.batch_size={train.batch_size} chunks cannot be dealt to {size} processes. "
                + next_step,
            ),
            (
                not getattr(model, "dropout", 0.0),
                f"dropout: masks of several processes are not kept in a checkpoint. {next_step}",
            ),
            (
                not train.compile,
                f"train.compile: a compiled model is trained in one process. {next_step}",
            ),
        )

    def _chunks(self, about: dict[str, Any] | None) -> ChunkSelection:
        """What may be drawn: all of the train split, or what a file says; of a resumed run, the
        copy of that file in its folder.
        """
        if not self.config.train.chunks:
            return ChunkSelection(np.arange(len(self.corpus), dtype=np.int64))
        chunks = read_chunks(
            self.folder / CHUNKS_FILE if about else self.config.train.chunks, len(self.corpus)
        )
        if about and about["chunks"]["digest"] != chunks.digest:
            raise RunFolderError(
                f"{self.folder / CHUNKS_FILE} was altered since the run began. Next: restore "
                "it, or start a new run"
            )
        return chunks

    def _describe(self) -> dict[str, Any]:
        """Make the folder and write run.json, which makes it a run."""
        about = {
            "format": FORMAT,
            "config": self.config.to_mapping(),
            "corpus": str(self.corpus.folder),
            "corpus_digest": self.corpus.digest,
            "own_targets": self._own_targets,
            "chunks": {"count": len(self.chunks.ids), "digest": self.chunks.digest},
            "parameters": self.model.num_parameters(),
            "precision": {
                "device": self.precision.device.type,
                "autocast": str(self.precision.dtype or "none"),
            },
            "git_revision": git_revision(),
        }
        self.folder.mkdir(parents=True)
        if self.config.train.chunks:
            write_chunks(self.folder / CHUNKS_FILE, self.chunks.ids, self.chunks.weights)
        return read_json(write_json(self.folder / RUN_FILE, about))

    def _load_checkpoint(self) -> dict[str, Any] | None:
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        if not found:
            return None
        state = checkpoint.load(found[-1], self.model, self.optimizer)
        self.step = state["step"]
        self.console.print(f"going on from {found[-1]}", highlight=False, soft_wrap=True)
        return state

    def _open_logs(self) -> None:
        config = self.config
        self._speed = Speed(
            config.model_config(),
            config.data.block_size,
            self.precision.device,
            self.processes.size,
        )
        self._sinks: list[Sink] = []
        self._chunk_losses = None
        if not self.processes.leads:
            return
        last = self.step if self.step else -1
        lines = JsonLines(self.folder / "log.jsonl", "iter", last)
        self._sinks += [lines, Terminal(config.train.steps, self.step, self.console)]
        if config.log.chunk_losses:
            self._chunk_losses = JsonLines(self.folder / "chunks.jsonl", "step", self.step - 1)
            self._sinks.append(self._chunk_losses)
        if config.log.wandb != "off":
            self._sinks.append(Wandb(config.log, self.folder, config.name, config.to_mapping()))
        for sink in self._sinks:
            self._open.callback(sink.close)


def git_revision() -> str | None:
    """Commit of the working tree that this package is in, None if it is in none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
