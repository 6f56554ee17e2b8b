"""Values of training samples, from outside any training loop.

    attr = Attributor(model, optimizer, targets={"val": lambda: model(**val).loss}, store="runs/demo/values")
    for batch in loader:
        with attr.batch(batch["id"]):
            model(**batch).loss.backward()
        optimizer.step(); optimizer.zero_grad()
    values = attr.close()

The model is not wrapped and the optimizer is not replaced: uses of parameters are seen while the
context is open, everything else happens in a hook just before the optimizer moves the weights. The
trained weights are the same bits with and without attribution.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.attributor.balance import (
    NonFiniteError,
    check_balance,
    check_seen,
    common_factor,
    gradient_norms,
)
from inrun.attributor.ledger import Ledger, Waiting
from inrun.attributor.processes import Processes
from inrun.attributor.result import StepResult
from inrun.ghost import CompiledProbes, GradientBuffers, StreamingDots, Tape, UseTracker, token_dots
from inrun.ghost.backward import grad
from inrun.methods import Method, Step, Target, directions
from inrun.store import ValueStore, ValueWriter
from inrun.updates import PlainSGD, UnknownOptimizerError, snapshots
from inrun_kernels import memory
from inrun_kernels.backend import read_together

log = logging.getLogger(__name__)

Key = tuple[str, str]  # (method, target)

#: steps after which elements without optimizer state are looked for again once there were none
_LOOK_FOR_STATE = 256


@dataclass
class _MicroBatch:
    ids: np.ndarray
    record: StreamingDots | Tape | CompiledProbes | None
    forward: Callable[[], Tensor] | None
    rng: list[Tensor]


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
        method: "first_order" | "second_order" | "path", a `Method`, or a list of them. The first
            one is what `last` shows.
        update, state, nodes, quadrature, credit, tolerance: see `Method`; they apply to methods
            given by name.
        route: "rules" (a rule per operation; exact, fast), "forward" (one forward-mode pass per
            direction; any architecture; needs ``batch(ids, forward=...)``), or "compiled" (for
            models under torch.compile: linear, embedding and norm layers and this project's fused
            head; directions known before the backward only; the weight gradient is summed sample by
            sample, as with fused=True).
        store: folder for the values, or None to keep only `last`.
        params: regular expression; only parameters whose name it finds are valued.
        every: value every k-th step only.
        refresh: evaluate the targets' gradients on every k-th valued step only and use them for the
            steps between (first_order, path). The optimizer's slopes are always those of the step.
            `docs/performance.md` has what it costs in fidelity. The ledger still evaluates the
            targets' losses at each step: see `ledger`.
        per_token: also value every predicted token; needs ``batch(ids, forward=...)``.
        fused: linear layers and the language-model head take dots in their own backward: faster;
            the weight gradient is summed sample by sample, so that the trained weights differ from
            unattributed training by rounding. False leaves them the same bits.
        replay: methods whose direction is known after the backward keep nothing of the batch and
            run it once more instead: no memory, a forward and a backward more, any number of
            micro-batches; needs ``batch(ids, forward=...)``.
        memory_budget: bytes of per-sample weight gradients that methods whose direction is known
            after the backward (second_order, path) may keep with fused=True; None: a quarter of the
            device's memory. Past it they keep layer inputs and output gradients and pay one more
            product.
        ledger: evaluate drift on every k-th valued step (0: no ledger at all). Costs a forward pass
            of each target.
        check: check the books on every k-th valued step (0: never).
        samples: table about the samples (`sample_id`, domain, ...) that is copied into the store.
        run: entries for the store's run.json: config, corpus_digest, git_revision.
        resume: what `state_dict` returned at the checkpoint that training goes on from; the store
            drops what came after it.
        flush_every: steps between flushes of the store.
        group: the processes that train together, where you average `.grad` over them yourself (at
            the end of the last micro-batch's block) instead of by DistributedDataParallel.
        share_targets: with several processes, each one's closure gives its part of a target's loss,
            and the parts are added up. False: each evaluates the whole.

    With several processes `store` is one folder for all, values and `last` are those of this
    process's samples, and what is said of a step (books, ledger, loss) is of all samples. Values
    are those of one process with the whole batch, whose loss is the mean of the processes' losses.

    Raises:
        ValueError, UnknownOptimizerError: at construction, for options that cannot work.
        UncoveredUseError, MixedSamplesError: in the forward, for an operation without a rule.
        BalanceError, NonFiniteError: in ``optimizer.step()``, before the weights are touched.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        targets: Mapping[str, Callable[[], Tensor]],
        method: str | Method | Sequence[str | Method] = "first_order",
        *,
        update: str = "auto",
        state: str = "previous",
        nodes: int = 1,
        quadrature: str = "midpoint",
        credit: str = "immediate",
        tolerance: float | None = None,
        route: str = "rules",
        store: str | Path | None = None,
        params: str | None = None,
        every: int = 1,
        refresh: int = 1,
        per_token: bool = False,
        fused: bool = False,
        replay: bool = False,
        memory_budget: int | None = None,
        ledger: int = 1,
        check: int = 1,
        samples: pa.Table | None = None,
        run: Mapping | None = None,
        resume: Mapping | None = None,
        flush_every: int = 200,
        group: "torch.distributed.ProcessGroup | None" = None,
        share_targets: bool = False,
    ):
        model, self.processes = Processes.of(model, group)
        given = [method] if isinstance(method, (str, Method)) else list(method)
        options = {
            "update": update,
            "state": state,
            "nodes": nodes,
            "quadrature": quadrature,
            "credit": credit,
            "tolerance": tolerance,
        }
        self.methods = [m if isinstance(m, Method) else Method(m, **options) for m in given]
        self._check_arguments(targets, route, every, refresh)
        self.model, self.route, self.every, self.per_token = model, route, every, per_token
        self._ledger_every, self._check_every = ledger, check
        self.fused, self.replay = fused, replay
        self.optimizers = (
            [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        )
        self._owners = self._find_owners()
        self.parameters = self._track(model, params)
        tracked = {id(p) for p in self.parameters.values()}
        self._constants = [
            *model.buffers(),
            *(p for p in model.parameters() if id(p) not in tracked),
        ]
        shared = self.processes.sums if share_targets and not self.processes.alone else None
        self.targets = {
            name: Target(
                name,
                closure,
                self.parameters,
                model,
                fused,
                refresh > 1,
                self.processes.quietly,
                shared,
            )
            for name, closure in targets.items()
        }
        self.keys: list[Key] = [(m.name, target) for m in self.methods for target in self.targets]
        self._known = [(m, t) for m in self.methods if m.known_before for t in self.targets]
        self._later = [(m, t) for m in self.methods if not m.known_before for t in self.targets]
        # an optimizer without a rule is refused now, not after the first backward
        self._snapshots()

        if memory_budget is None:
            memory_budget = _memory(next(iter(self.parameters.values())).device) // 4
        self._kept = GradientBuffers(memory_budget if fused and self._later else 0)
        self.step = int(resume["step"]) if resume else 0
        self.last_step: StepResult | None = None
        self._refresh_every, self._valued_since_refresh = refresh, 0
        self._settled: set[str] = set()  # parameters all of whose elements have optimizer state
        self._said_coarse = False
        self.ledger = Ledger()
        self._annotations: dict[str, float | int | None] = {}
        self._reset()
        self.writer = self.processes.one_by_one(
            lambda: self._open_store(store, run, resume, flush_every)
        )
        if self.writer and samples is not None and self.processes.leads:
            self.writer.samples(samples)
        self._hooks = [o.register_step_pre_hook(self._before_step) for o in self.optimizers]
        self._closed = False

    # -- what the user calls

    @contextmanager
    def batch(self, ids, forward: Callable[[], Tensor] | None = None) -> Iterator[None]:
        """Around forward and backward of one micro-batch.

        Args:
            ids: one integer per sample [n], in the order of axis 0.
            forward: evaluates the micro-batch's loss again and returns it; needed for
                per_token=True, replay=True and route="forward" only.
        """
        if self._closed:
            raise RuntimeError("this Attributor is closed")
        ids = self._sample_ids(ids)
        if forward is None and (self.per_token or self.replay or self.route == "forward"):
            raise ValueError(
                "per_token=True, replay=True and route='forward' need attr.batch(ids, "
                "forward=lambda: <the loss that is backpropagated>)"
            )
        self._drop_unused()
        if not self._open:
            self._begin()
        if not self._scored:
            yield
            return
        record = self._recorder(len(ids))
        rng = _random_state(self.parameters) if forward is not None else []
        try:
            with self._watching(record):
                yield
        except BaseException:
            self._reset()
            raise
        self._micro.append(_MicroBatch(ids, record, forward, rng))
        self._norms = gradient_norms(self.parameters)
        self._versions = self._gradient_versions()

    def _recorder(self, n: int) -> StreamingDots | Tape | CompiledProbes | None:
        """What takes the dots of a micro-batch: at once where the directions are known, from a tape
        or by a second pass otherwise.
        """
        if self.route == "compiled":
            return CompiledProbes(self.parameters, self._directions, n)
        if self.route == "forward" or (self.replay and self._later):
            return None
        return (
            Tape(n, self.fused, self._kept)
            if self._later
            else StreamingDots(self._directions, n, self.fused)
        )

    @contextmanager
    def _watching(self, record: StreamingDots | Tape | CompiledProbes | None) -> Iterator[None]:
        if record is None:
            yield
            return
        mode = (
            record
            if isinstance(record, CompiledProbes)
            else UseTracker(self.parameters, self._constants, record)
        )
        # backward in the caller's thread, where the context is active: recomputed forwards
        # (checkpointing) are then seen as well
        with torch.autograd.set_multithreading_enabled(False), mode:
            yield

    def _replay(self, micro: "_MicroBatch", record: StreamingDots | Tape) -> StreamingDots | Tape:
        """The micro-batch once more, for another record; its gradient is thrown away."""
        with self._again(micro), self._watching(record), torch.enable_grad():
            grad([micro.forward()], list(self.parameters.values()))
        return record

    @contextmanager
    def _again(self, micro: "_MicroBatch") -> Iterator[None]:
        """For a second forward of a micro-batch: dropout repeats what the training pass drew, and
        buffers are written once.
        """
        now = _random_state(self.parameters)
        buffers = [(buffer, buffer._version, buffer.clone()) for buffer in self.model.buffers()]
        _set_random_state(micro.rng)
        try:
            with self.processes.quietly():
                yield
        finally:
            _set_random_state(now)
            with torch.no_grad():
                for buffer, version, kept in buffers:
                    if buffer._version != version:
                        buffer.copy_(kept)

    def annotate(self, **columns: float | int | None) -> None:
        """Columns for the store's row of the coming step (loss, tokens, seconds, or numbers of your
        own, the same ones every step).
        """
        self._annotations.update(columns)

    @property
    def last(self) -> dict[str, Tensor]:
        """target -> values [n] of the step just taken by the first method, in the order of the
        ids.
        """
        if self.last_step is None:
            raise RuntimeError("no step has been valued yet")
        return {
            target: self.last_step.values[self.methods[0].name, target] for target in self.targets
        }

    @torch.no_grad()
    def interactions(self, target: str | None = None) -> Tensor:
        """Pairwise Shapley interaction index of the samples of the current step, for the quadratic
        utility: ``-eta^2 g_i^T H_L g_j`` [n, n].

        Call it between the backward and ``optimizer.step()``. Negative: the two are redundant;
        positive: they complement each other. For adaptive optimizers eta is the secant of the
        update. Needs a method that keeps a tape (second_order, path, or first_order with
        state="current").
        """
        if not self.processes.alone:
            raise RuntimeError(
                "interactions() are of samples in one process; train in a single one to see them"
            )
        if not self._micro or not all(isinstance(m.record, Tape) for m in self._micro):
            raise RuntimeError(
                "interactions() is called between the backward and optimizer.step(), with a "
                "method whose direction is known after the backward "
                "(second_order, path): those keep what it needs"
            )
        chosen = self.targets[target if target is not None else next(iter(self.targets))]
        gradients, c = self._gradients_and_factor()
        step = self._step_view(gradients, c)
        method = self.methods[0]
        rows = []
        for micro in self._micro:
            for j in range(len(micro.ids)):
                own = {name: micro.record.dense(name, j) for name in gradients}
                moved = {
                    name: step.pull_back(method, name, c * g.to(gradients[name].dtype))
                    for name, g in own.items()
                    if g is not None
                }
                _, hvp = chosen.gradient_and_hvp(moved)
                V = {
                    name: step.pull_back(method, name, h)[None]
                    for name, h in hvp.items()
                    if name in gradients
                }
                rows.append(
                    -c * torch.cat([sum(m.record.dots(V).values())[0] for m in self._micro])
                )
        return torch.stack(rows)

    def flush(self) -> None:
        """Complete the ledger at the current weights and make all rows durable, those of all
        processes.
        """
        self._close_ledger()
        if self.writer:
            self.writer.flush()
            self.processes.wait()

    def state_dict(self) -> dict:
        """For a checkpoint taken between two steps; flushes the store first, so that nothing before
        the checkpoint can be missing.
        """
        if self._open:
            raise RuntimeError(
                "state_dict() is called between optimizer steps, not after a backward whose "
                "step has not been taken"
            )
        self.flush()
        self._valued_since_refresh = (
            0  # a resumed run has no gradient to reuse, so this one must not have one either
        )
        return {"step": self.step}

    def close(self) -> ValueStore | None:
        """Complete the books, remove the hooks, and open the store for reading. Closing twice is
        allowed.
        """
        if not self._closed:
            self._closed = True
            for hook in self._hooks:
                hook.remove()
            self._reset()
            self._close_ledger()
            self._kept = GradientBuffers()
            memory.release()
            if self.writer:
                self.writer.close()
                self.processes.wait()
        return ValueStore(self.writer.path) if self.writer else None

    def __enter__(self) -> "Attributor":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self.close()
        elif not self._closed:  # the run broke: keep what is whole, evaluate nothing more
            self._closed = True
            for hook in self._hooks:
                hook.remove()
            self._reset()
            if self.writer:
                self.writer.close()

    # -- construction

    def _check_arguments(self, targets, route, every, refresh) -> None:
        names = [m.name for m in self.methods]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"methods need distinct names, got {names}; give Method(..., name=...)"
            )
        if not targets:
            raise ValueError("give at least one target: targets={'val': lambda: <validation loss>}")
        if route not in ("rules", "forward", "compiled"):
            raise ValueError(f"route={route!r}: choose 'rules', 'forward' or 'compiled'")
        late = [m.name for m in self.methods if not m.known_before]
        if route == "compiled" and late:
            raise ValueError(
                "route='compiled' needs directions that are known before the backward, and "
                f"{', '.join(late)} is not; use first_order with "
                "state='previous' or update='sgd', or train uncompiled with route='rules'"
            )
        if route == "compiled" and not self.processes.alone:
            raise ValueError(
                "route='compiled' works in one process only; with several use route='rules', "
                "uncompiled"
            )
        if every < 1:
            raise ValueError(f"every must be 1 or more, not {every}")
        second = [m.name for m in self.methods if m.kind == "second_order"]
        if refresh < 1 or (refresh > 1 and second):
            why = (
                f"; {', '.join(second)} needs 1, since its Hessian-vector product is along the "
                "step's own gradient"
            )
            raise ValueError(f"refresh={refresh}: choose 1 or more{why if second else ''}")
        if refresh > 1 and any(m.tolerance for m in self.methods):
            raise ValueError(
                "tolerance compares with the loss of this step, and refresh uses the "
                "gradients of earlier ones: choose one of them"
            )

    def _find_owners(self) -> dict[int, tuple[torch.optim.Optimizer, dict]]:
        return {
            id(p): (o, group)
            for o in self.optimizers
            for group in o.param_groups
            for p in group["params"]
        }

    def _track(self, model: nn.Module, params: str | None) -> dict[str, Tensor]:
        trainable = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and id(p) in self._owners
        }
        if not trainable:
            raise ValueError(
                "the optimizer updates no trainable parameter of the model; was it built "
                "from another model's parameters?"
            )
        tracked = {
            name: p for name, p in trainable.items() if params is None or re.search(params, name)
        }
        if not tracked:
            raise ValueError(
                f"params={params!r} matches no trainable parameter; they are "
                f"{', '.join(list(trainable)[:8])}, ..."
            )
        if sharded := [
            name for name, p in tracked.items() if hasattr(p, "device_mesh")
        ]:  # a DTensor
            raise ValueError(
                f"parameter {sharded[0]} is sharded over devices (FSDP, tensor parallelism), "
                "which is not supported; use DistributedDataParallel"
            )
        return tracked

    def _open_store(self, path, run, resume, flush_every) -> ValueWriter | None:
        if path is None:
            return None
        about = {
            "targets": list(self.targets),
            "methods": [m.name for m in self.methods],
            "attribution": {
                "methods": {
                    m.name: {k: v for k, v in vars(m).items() if k != "name"} for m in self.methods
                },
                "every": self.every,
                "refresh": self._refresh_every,
            },
            **(run or {}),
        }
        rank = self.processes.rank
        if resume is not None:
            return ValueWriter.resume(path, about, self.step, rank, flush_every)
        return ValueWriter(path, about, rank, flush_every)

    # -- one step

    def _reset(self) -> None:
        """No step is in progress."""
        self._open = False
        self._scored = False
        self._micro: list[_MicroBatch] = []
        self._norms: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self._directions: dict[str, Tensor] = {}
        self._lr_then: dict[str, float] = {}
        self._samples = 0
        self._kept.release()

    def _drop_unused(self) -> None:
        """A gradient that was zeroed without a step (a loss scaler found an overflow, a batch was
        skipped) takes its micro-batches with it.
        """
        if not self._micro or self._gradient_versions() == self._versions:
            return
        if all(norm == 0 for norm in read_together(gradient_norms(self.parameters)).values()):
            log.warning(
                "step %d: the gradient was zeroed without an optimizer step; %d "
                "micro-batches are dropped",
                self.step,
                len(self._micro),
            )
            self._reset()

    def _gradient_versions(self) -> dict[str, tuple[int, int]]:
        """What tells without a look at the numbers that no gradient was written to."""
        return {
            name: (id(p.grad), p.grad._version)
            for name, p in self.parameters.items()
            if p.grad is not None
        }

    def _begin(self) -> None:
        """First micro-batch of a step: the weights are those of the step, and the directions that
        can be known are made.
        """
        self._open = True
        self._scored = self.step % self.every == 0
        for target in self.targets.values():
            target.forget()
        if not self._scored:
            self._close_ledger()
            return
        if self._valued_since_refresh % self._refresh_every == 0:
            for target in self.targets.values():
                target.refresh()
        self._valued_since_refresh += 1
        if self._known or any(m.kind == "first_order" for m in self.methods):
            for target in self.targets.values():
                target.gradient()  # also gives the loss that completes the last step's books
        self._close_ledger()
        if self._known:
            with torch.no_grad():
                step = self._step_view(None, 1.0)
                step.keep_slopes = len(self._known) > 1
                self._directions = self._stack(self._made(step, self._known), len(self._known))
            self._lr_then = {name: self._lr(name) for name in self.parameters}

    @torch.no_grad()
    def _before_step(self, optimizer, args, kwargs) -> None:
        if not self._open:
            return
        try:
            if self._scored and self._micro:
                self._score()
                self.step += 1
            elif not self._scored:
                self.step += 1
        finally:
            self._reset()

    def _score(self) -> None:
        gradients, c = self._gradients_and_factor()
        step = self._step_view(gradients, c)
        V = self._directions
        if self._later:
            V = self._stack_with(V, self._made(step, self._later))
        keys = [(m.name, t) for m, t in [*self._known, *self._later]]
        self._finish(step, gradients, c, V, keys)

    def _finish(
        self,
        step: Step,
        gradients: dict[str, Tensor],
        c: float,
        V: dict[str, Tensor],
        keys: list[Key],
    ) -> None:
        checking = self._check_every and self.step // self.every % self._check_every == 0
        tokens: dict[Key, list[Tensor]] = {}
        if self.route != "forward":
            dots = self._collect_dots(V)
            if checking:
                check_balance(
                    dots, gradients, V, c, keys, self._lowest_dtype(), self.processes.total
                )
            dots = {name: c * self._at_present_lr(name, d, keys) for name, d in dots.items()}
            total = (
                sum(dots.values())
                if dots
                else torch.zeros(
                    len(keys), sum(len(m.ids) for m in self._micro), dtype=torch.float64
                )
            )
        if self.route == "forward" or self.per_token:
            now = {name: self._at_present_lr(name, v, keys) for name, v in V.items()}
            tokens = {
                key: self._token_values({name: v[k] for name, v in now.items()}, c)
                for k, key in enumerate(keys)
            }
            if self.route == "forward":
                dots = {}
                total = torch.stack(
                    [torch.cat([rows.sum(1) for rows in tokens[key]]) for key in keys]
                )
                if checking:
                    self._check_forward_books(total, gradients, now, keys)
        ids = np.concatenate([m.ids for m in self._micro])
        bad = (~torch.isfinite(total)).any(0)
        count, *sums = self.processes.total(
            torch.cat([bad.sum()[None].to(total.dtype), total.sum(1)])
        ).tolist()
        if count:
            self._raise_non_finite(ids[bad.cpu().numpy()].tolist())
        values = {key: total[k] for k, key in enumerate(keys)}
        result = StepResult(
            step=self.step,
            ids=ids,
            values={key: values[key] for key in self.keys},
            per_parameter={
                key: {name: d[k] for name, d in dots.items()} for k, key in enumerate(keys)
            },
            tokens=tokens if self.per_token else {},
            sums=dict(zip(keys, sums)),
            clip=c * self.processes.size,
            stateless=step.stateless_share(),
        )
        # a second moment decays to zero only by underflow, over a thousand steps and more without a
        # gradient
        self._settled = set() if self.step % _LOOK_FOR_STATE == 0 else step.settled
        self._book(step, result)
        self._write(result)
        self.last_step = result

    def _gradients_and_factor(self) -> tuple[dict[str, Tensor], float]:
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not gradients:
            raise RuntimeError(
                "optimizer.step() was called with no gradient; the backward must run inside "
                "`with attr.batch(...)`"
            )
        norms = read_together(gradient_norms(self.parameters))
        if not all(map(math.isfinite, norms.values())):
            self._name_non_finite()
        seen = set().union(*(m.record.seen for m in self._micro if m.record is not None))
        own = [sum(len(m.ids) for m in self._micro), *(name in seen for name in self.parameters)]
        self._samples, *uses = self.processes.total(torch.tensor(own)).tolist()
        if any(m.record is not None for m in self._micro):
            check_seen(norms, {name for name, used in zip(self.parameters, uses) if used})
        dtypes = {name: p.dtype for name, p in self.parameters.items()}
        return gradients, common_factor(
            read_together(self._norms), norms, dtypes
        ) / self.processes.size

    def _collect_dots(self, V: dict[str, Tensor]) -> dict[str, Tensor]:
        """name -> [k, n] over all micro-batches; a micro-batch that did not use a parameter
        contributes zeros.
        """
        k = next(iter(V.values())).shape[0] if V else 0
        per_micro = [
            (self._replay(m, StreamingDots(V, len(m.ids))) if m.record is None else m.record).dots(
                V
            )
            for m in self._micro
        ]
        out: dict[str, Tensor] = {}
        for name in V:
            if any(name in d for d in per_micro):
                device = V[name].device
                out[name] = torch.cat(
                    [
                        d.get(name, torch.zeros(k, len(m.ids), dtype=torch.float64, device=device))
                        for d, m in zip(per_micro, self._micro)
                    ],
                    1,
                )
        return out

    def _token_values(self, V: dict[str, Tensor], c: float) -> list[Tensor]:
        weights = {self.parameters[name]: v for name, v in V.items()}
        rows = []
        for micro in self._micro:
            with self._again(micro):
                rows.append(c * token_dots(micro.forward, weights, len(micro.ids)).double())
        return rows

    def _check_forward_books(self, total: Tensor, gradients, V, keys) -> None:
        whole = {name: v for name, v in V.items() if name in gradients}
        flat_V = torch.cat([v.reshape(len(keys), -1).double() for v in whole.values()], 1)
        flat_g = torch.cat([gradients[name].flatten().double() for name in whole])
        # the forward pass uses unfused attention, so its rounding is that of the coarsest dtype in
        # use, not the order of a sum
        check_balance(
            {"(all)": total},
            {"(all)": flat_g.to(next(iter(gradients.values())).dtype)},
            {"(all)": flat_V},
            1.0,
            keys,
            self._lowest_dtype(),
            self.processes.total,
        )

    def _book(self, step: Step, result: StepResult) -> None:
        if not self._ledger_every:
            return
        measure = self.step // self.every % self._ledger_every == 0
        nobody = None
        if measure and step.updates is not step.plain:
            nobody = step.moved(Method("path"), 0.0)
            if all(torch.equal(moved, step.weights[name]) for name, moved in nobody.items()):
                nobody = None  # neither momentum nor decay: there is no drift
        for name, target in self.targets.items():
            result.loss_before[name] = target.loss()
            if measure:
                result.drift[name] = (
                    0.0 if nobody is None else target.loss() - target.loss(at=nobody)
                )
        for method in self.methods:
            for name in self.targets:
                parts = result.per_parameter[method.name, name]
                drift = result.drift.get(name)
                if (
                    drift is not None
                    and method.credit == "impulse"
                    and method.update == "auto"
                    and parts
                ):
                    # what the samples are given of later steps is taken from the drift of those
                    # steps, here as a shift of this one's
                    shift = sum(
                        (1.0 - 1.0 / step.updates[p].impulse) * v.sum() for p, v in parts.items()
                    )
                    drift -= float(self.processes.total(shift))
                total = result.sums[method.name, name]
                self.ledger.open(
                    Waiting(self.step, name, method.name, result.loss_before[name], drift, total)
                )

    def _close_ledger(self) -> None:
        if self.ledger.waiting:
            losses = {}
            for name, target in self.targets.items():
                if not self._open:
                    target.forget()
                losses[name] = target.loss()
            self.ledger.close(losses, self.writer if self.processes.leads else None)

    def _write(self, result: StepResult) -> None:
        if not self.writer:
            return
        for name in self.targets:
            columns = {m.name: result.values[m.name, name].cpu().numpy() for m in self.methods}
            self.writer.terms(result.step, result.ids, name, columns)
            for m in self.methods if self.per_token else ():
                rows = [row for part in result.tokens[m.name, name] for row in part.cpu().numpy()]
                self.writer.tokens(result.step, result.ids, name, m.name, rows)
        if not self.processes.leads:
            return
        group = self.optimizers[0].param_groups[0]
        row = {
            "step": result.step,
            "lr": float(group["lr"]),
            "clip": result.clip,
            "loss": None,
            "seconds": None,
            "tokens": None,
            "samples": self._samples,
        }
        self.writer.steps({**row, "stateless": result.stateless, **self._annotations})
        self._annotations = {}

    # -- small facts

    def _snapshots(self):
        plain = {
            name: PlainSGD(p, {}, self._owners[id(p)][1]) for name, p in self.parameters.items()
        }
        try:
            owners = {name: self._owners[id(p)] for name, p in self.parameters.items()}
            return snapshots(
                {name: (o, self.parameters[name], group) for name, (o, group) in owners.items()}
            ), plain
        except UnknownOptimizerError:
            if any(m.update != "sgd" for m in self.methods):
                raise
            return plain, plain  # the paper's formula needs lr only; drift is then not known

    def _step_view(self, gradients: dict[str, Tensor] | None, c: float) -> Step:
        updates, plain = self._snapshots()
        replayed: dict[str, Tensor] = {}

        def squares(name: str) -> Tensor | None:
            if self.route != "rules":
                return self._no_squares()
            if self.replay:
                if not replayed:
                    replayed.update(self._replayed_squares())
                found = [replayed[name]] if name in replayed else []
            else:
                found = [q for m in self._micro if (q := m.record.squares(name)) is not None]
            own = c * c * sum(found) if found else None
            if self.processes.alone:
                return own
            (everybodys,) = self.processes.sums(
                [
                    torch.zeros_like(self.parameters[name])
                    if own is None
                    else own.to(self.parameters[name].dtype)
                ]
            )
            return everybodys

        return Step(
            updates, plain, self.parameters, gradients, self._samples, squares, self._settled
        )

    def _replayed_squares(self) -> dict[str, Tensor]:
        """name -> sum_i g_i^2, from one more pass over each micro-batch; one tape at a time is in
        memory.
        """
        totals: dict[str, Tensor] = {}
        for micro in self._micro:
            tape = self._replay(micro, Tape(len(micro.ids)))
            for name in self.parameters:
                q = tape.squares(name)
                if q is not None:
                    totals[name] = totals[name] + q if name in totals else q
        return totals

    def _no_squares(self) -> None:
        if not self._said_coarse:
            self._said_coarse = True
            log.warning(
                "step %d: the optimizer has no state yet for some elements, or one of its "
                "first steps; route='forward' cannot average their slope over coalitions and "
                "takes the "
                "secant, so the values of the first steps are coarse. route='rules' has no "
                "such limit.",
                self.step,
            )

    def _made(self, step: Step, pairs: list[tuple[Method, str]]) -> Iterator[dict[str, Tensor]]:
        return (directions(method, step, self.targets[target]) for method, target in pairs)

    def _stack(self, found: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
        """`count` dicts {name: V} as one {name: V [count, *shape]}, made one after the other; a
        target that does not depend on a parameter has direction 0 there.
        """
        if count == 1:  # a view: a copy would be as large as the model
            return {name: V[None] for name, V in next(found).items()}
        stacked: dict[str, Tensor] = {}
        for k, directions_k in enumerate(found):
            for name, V in directions_k.items():
                if name not in stacked:
                    stacked[name] = memory.empty((count, *V.shape), V.dtype, V.device)
                    stacked[name][:k] = 0.0
                stacked[name][k] = V
            for name in stacked.keys() - directions_k.keys():
                stacked[name][k] = 0.0
        return {name: stacked[name] for name in self.parameters if name in stacked}

    def _stack_with(
        self, known: dict[str, Tensor], found: Iterator[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        ahead = ({name: V[k] for name, V in known.items()} for k in range(len(self._known)))
        return self._stack(chain(ahead, found), len(self._known) + len(self._later))

    def _lr(self, name: str) -> float:
        return float(self._owners[id(self.parameters[name])][1]["lr"])

    def _lr_ratios(self, name: str, keys: list[Key]) -> Tensor:
        """[k] float64. The learning rate may have changed between the direction and the step; every
        update is proportional to it.
        """
        known = torch.tensor([key in {(m.name, t) for m, t in self._known} for key in keys])
        return torch.where(known, torch.tensor(self._lr_ratio(name), dtype=torch.float64), 1.0)

    def _at_present_lr(self, name: str, V: Tensor, keys: list[Key]) -> Tensor:
        if self._lr_ratio(name) == 1.0:
            return V
        return V * self._lr_ratios(name, keys).to(V).view(-1, *(1,) * (V.dim() - 1))

    def _lr_ratio(self, name: str) -> float:
        then, now = self._lr_then.get(name), self._lr(name)
        if then is None or then == now:
            return 1.0
        if then == 0.0:
            raise RuntimeError(
                "the learning rate was 0 when the step began and is not at optimizer.step(); "
                "set it before the first micro-batch"
            )
        return now / then

    def _lowest_dtype(self) -> torch.dtype:
        """The coarsest dtype of what came back in the backward."""
        if self.route == "forward":
            return torch.float32
        found = {dtype for m in self._micro if m.record is not None for dtype in m.record.dtypes}
        return min(found, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32)

    def _name_non_finite(self) -> None:
        records = [(m.ids, m.record) for m in self._micro if m.record is not None]
        self._raise_non_finite(
            [int(i) for ids, record in records for i, bad in zip(ids, record.non_finite()) if bad]
        )

    def _raise_non_finite(self, bad: list) -> None:
        others = (
            "the whole batch"
            if self.processes.alone
            else "a sample of another process, or of the whole batch,"
        )
        who = f"samples {', '.join(map(str, bad[:8]))}" if len(bad) else others
        raise NonFiniteError(
            f"step {self.step}: the gradient of {who} is not finite. The weights have not "
            "been changed and no value of this step was stored; zero the gradient and go "
            "on without these samples, or look at their text, the learning rate and the loss scale."
        )

    @staticmethod
    def _sample_ids(ids) -> np.ndarray:
        array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"ids must be integers, one per sample [n], not {array.dtype} of shape "
                f"{array.shape}"
            )
        return array.astype(np.int64)


def _memory(device: torch.device) -> int:
    """Bytes that the device has. Not those that are free: what is kept decides the order of sums,
    and a run's bits must not depend on what else is running.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 8 << 30


def _random_state(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    devices = sorted({p.device.index or 0 for p in parameters.values() if p.is_cuda})
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, cuda_state in enumerate(state[1:]):
        torch.cuda.set_rng_state(cuda_state, device)
