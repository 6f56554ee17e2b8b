"""The micro-batches of one optimizer step: what was recorded of each, and how it runs again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn

from inrun.attributor.kept import Room
from inrun.attributor.micro_batch import AnyRecord, MicroBatch, Record
from inrun.attributor.parameters import RandomState, TrackedParameters
from inrun.attributor.processes import Processes
from inrun.attributor.tolerance import Rounding, coarser
from inrun.ghost import (
    CompiledProbes,
    GradientBuffers,
    StreamingDots,
    Tape,
    UseTracker,
    WholeGradients,
    WholeRouteError,
    WholeTape,
    token_dots,
)
from inrun.ghost.backward import grad
from inrun.ghost.errors import ONE_AT_A_TIME
from inrun.ghost.tape import Use, penalty_dots
from inrun.rules.factors import SampleAxisError

#: in the first steps, own autograd functions are looked for in the graph, to be named in an error
LOOK_FOR_FUNCTIONS = 3


class MicroBatches:
    """Those of a step, in order.

    Args:
        model: whose buffers a second forward leaves as they are.
        parameters: the tracked ones.
        processes: whose exchange of gradients a second forward does not announce.
        late: whether a direction is known after the backward only.
        buffers: memory for per-sample weight gradients.
        room: for layer inputs and output gradients.

    Attributes:
        known: name -> directions [k, *shape] that are known before the backward.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: TrackedParameters,
        processes: Processes,
        late: bool,
        buffers: GradientBuffers,
        room: Room,
    ):
        self.model, self.parameters, self.processes = model, parameters, processes
        self.late, self.buffers, self.room = late, buffers, room
        self._kept = 0
        # of micro-batches that are run once more
        self._seen: set[str] = set()
        self._dtypes: set[torch.dtype] = set()
        self.known: dict[str, Tensor] = {}
        self.done: list[MicroBatch] = []
        self._squares: dict[str, Tensor] | None = None
        self._uses: set[Use] = set()

    @contextmanager
    def recorded(
        self,
        ids: np.ndarray,
        forward: Callable[[], Tensor] | None,
        record: Record | None,
        rows: Tensor | None = None,
    ) -> Iterator[None]:
        """Around forward and backward of one more micro-batch."""
        random = RandomState(self.parameters) if forward is not None else None
        if isinstance(record, StreamingDots | Tape):
            record.looking = self.parameters.reads <= LOOK_FOR_FUNCTIONS
        with self._seen_by(record, rows):
            yield
        if isinstance(record, StreamingDots | Tape) and record.unfound:
            raise SampleAxisError(record.unfound)
        penalties = record.penalties if isinstance(record, StreamingDots | Tape) else []
        if isinstance(record, WholeTape) and record.spilled:
            if forward is None:
                raise WholeRouteError(out_of_memory(len(self.done), self.buffers.budget))
            record = None
        elif isinstance(record, Tape) and not isinstance(record, WholeTape):
            size = record.nbytes()
            if self.room.spills(self._kept + size, forward is not None):
                self._seen |= record.seen
                self._dtypes |= record.dtypes
                self._uses |= record.uses
                record = None
            else:
                self._kept += size
        self.done.append(MicroBatch(ids, record, forward, random, rows, penalties))

    @contextmanager
    def _seen_by(self, record: Record | None, rows: Tensor | None) -> Iterator[None]:
        mode: AbstractContextManager = nullcontext()
        if isinstance(record, CompiledProbes | WholeGradients):
            mode = record
        elif record is not None:
            mode = UseTracker(self.parameters.by_name, self.parameters.constants, record, rows)
        # backward in the caller's thread, where the context is active: recomputed forwards
        # (checkpointing) are then seen as well
        threads = (
            torch.autograd.set_multithreading_enabled(False)
            if record is not None
            else nullcontext()
        )
        with threads, mode:
            yield

    def replayed(self, micro: MicroBatch, record: AnyRecord) -> AnyRecord:
        """The micro-batch once more, for another record; its gradient is thrown away."""
        with self.again(micro), self._seen_by(record, micro.rows), torch.enable_grad():
            found = grad([micro.evaluate()], list(self.parameters.by_name.values()))
        if isinstance(record, WholeGradients):
            record.add_all(found)
        else:
            self._uses |= record.uses
        micro.penalties = record.penalties or micro.penalties
        return record

    @contextmanager
    def again(self, micro: MicroBatch) -> Iterator[None]:
        """For a second forward of a micro-batch.

        Dropout repeats what the training pass drew, and buffers are written once.
        """
        now = RandomState(self.parameters)
        buffers = [(buffer, buffer._version, buffer.clone()) for buffer in self.model.buffers()]
        if micro.random is not None:
            micro.random.restore()
        try:
            with self.processes.quietly():
                yield
        finally:
            now.restore()
            with torch.no_grad():
                for buffer, version, kept in buffers:
                    if buffer._version != version:
                        buffer.copy_(kept)

    # -- what all of them give together

    @property
    def ids(self) -> np.ndarray:
        """Sample ids [n] of this process."""
        return np.concatenate([micro.ids for micro in self.done])

    @property
    def count(self) -> int:
        """Samples of this process."""
        return sum(map(len, self.done))

    @property
    def records(self) -> list[Record]:
        """What was recorded, where something was."""
        return [micro.record for micro in self.done if micro.record is not None]

    @property
    def tapes(self) -> list[Tape]:
        """Those records that keep what any direction needs."""
        return [record for record in self.records if isinstance(record, Tape)]

    @property
    def seen(self) -> set[str]:
        """Names of the parameters of which a use was seen."""
        return self._seen.union(*(record.seen for record in self.records))

    @property
    def uses(self) -> set[Use]:
        """What was done with which parameters, where a route sees it."""
        own = (record.uses for record in self.records if isinstance(record, StreamingDots | Tape))
        return self._uses.union(*own)

    @property
    def rounding(self) -> Rounding:
        """The arithmetic of the step."""
        found = self._dtypes.union(*(record.dtypes for record in self.records))
        lowest = reduce(coarser, found) if found else torch.float32
        return Rounding(lowest, len(self.done), self.parameters.shares, self.way_out)

    @property
    def way_out(self) -> str:
        """What a refusal of the balance says of causes that were met, and of the way out."""
        if any(isinstance(record, WholeGradients) for record in self.records):
            return ""
        met = [record.met for record in self.records if isinstance(record, StreamingDots | Tape)]
        names = ", ".join(sorted(set().union(*met)))
        functions = f" ({names}, of which nothing is seen inside)" if names else ""
        return (
            f" Where it is used in a torch.autograd.Function of your own{functions}, in a compiled "
            f"region or an extension, say {ONE_AT_A_TIME}."
        )

    def dots(
        self, V: Mapping[str, Tensor], of: Callable[[MicroBatch], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Name -> [k, n] over all micro-batches.

        Args:
            V: name -> directions [k, *shape].
            of: gives name -> [k, n] of one micro-batch; a parameter that it did not use has zeros.
        """
        k = next(iter(V.values())).shape[0] if V else 0
        each = [of(micro) for micro in self.done]
        found: dict[str, Tensor] = {}
        for name in V:
            if any(name in dots for dots in each):
                zeros = partial(torch.zeros, dtype=torch.float64, device=V[name].device)
                parts = [
                    dots[name] if name in dots else zeros((k, len(micro)))
                    for dots, micro in zip(each, self.done)
                ]
                found[name] = torch.cat(parts, 1)
        return found

    def penalty_dots(self, V: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name -> [k, 1]: what was added to the losses without data, which is no sample's."""
        found: dict[str, Tensor] = {}
        for micro in self.done:
            for name, part in penalty_dots(micro.penalties, V).items():
                found[name] = found[name] + part if name in found else part
        return found

    def token_values(self, V: Mapping[str, Tensor], c: float) -> list[Tensor]:
        """``c <g_it, V>`` of every token: [n, t] of each micro-batch, from one more forward."""
        weights = {self.parameters.by_name[name]: v for name, v in V.items()}
        rows, constants = [], self.parameters.constants
        for micro in self.done:
            with self.again(micro):
                dots = token_dots(micro.evaluate, weights, len(micro), micro.rows, constants)
            rows.append(c * dots.double())
        return rows

    def squares(self, name: str, tape_of: Callable[[MicroBatch], Tape]) -> Tensor | None:
        """``sum_i g_i^2`` elementwise of a parameter, from a tape of each micro-batch; None if none
        used it.
        """
        if self._squares is None:
            self._squares = {}
            for micro in self.done:
                tape = tape_of(micro)
                for parameter in self.parameters.by_name:
                    q = tape.squares(parameter)
                    if q is not None:
                        before = self._squares.get(parameter)
                        self._squares[parameter] = q if before is None else before + q
        return self._squares.get(name)

    def non_finite(self) -> list[int | str | bytes]:
        """Ids of the samples of which a record holds NaN or infinity."""
        return [
            i
            for micro in self.done
            if micro.record is not None
            for i, bad in zip(micro.ids.tolist(), micro.record.non_finite())
            if bad
        ]


def out_of_memory(kept: int, budget: int) -> str:
    """What is said where a sample's gradient finds no place."""
    return (
        f"route='whole' keeps each sample's gradient until a direction is known, and after {kept} "
        f"samples of this step its {budget / 2**20:.0f} MiB are used up. Give "
        "attr.batch(ids, forward=lambda: <the loss>), and samples past it are run once more; or "
        "allow more, route=Whole(memory=<bytes>); or choose a method that is known before the "
        "backward (first_order), which keeps nothing"
    )
