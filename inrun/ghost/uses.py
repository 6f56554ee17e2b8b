"""Sees every use of a tracked parameter in a forward pass, and taps the gradient that comes back to
it.

The instrument is the operation, not the module: inside the context, every torch function that is
given a parameter (or a tensor made from parameters alone) together with data of the batch is a
*use*. Its result passes through a tap, an identity whose backward sees the output gradient b beside
the saved inputs a; the training computation itself is not changed by a single bit, and what is
saved goes through autograd, so activation checkpointing works.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.ghost.again import Called
from inrun.ghost.arguments import TELLS, rebuilder, tensors_of
from inrun.ghost.backward import BACKWARDS, backward, backward_roots, inner_grad, makes_graph
from inrun.ghost.composite import opened
from inrun.ghost.errors import (
    GRADIENT_IN_LOSS,
    Named,
    UncoveredUseError,
    refuse_mixing,
    set_by_hand,
    uncovered,
    whose_rows,
)
from inrun.ghost.layout import Layouts
from inrun.ghost.origin import Parameter, derive, takes_no_data
from inrun.ghost.own_functions import OwnFunctions, sink
from inrun.ghost.tap import Tap
from inrun.ghost.tape import Recorder
from inrun.rules import OPERATIONS, Dense, Factor, Origin
from inrun.rules.cut import contribution
from inrun.rules.layout import SHARED, Layout
from inrun.rules.registry import UNKNOWN, Call, NoRule, Operation, find

_GRADIENT: Any = torch.Tensor.grad  # a descriptor, whatever the stubs say
#: what ``p.grad = g`` calls
SETS_GRADIENT = _GRADIENT.__set__


@dataclass
class Use:
    """One argument of one operation: where the tensor came from, and how to form its factor from b
    and the saved leaves.
    """

    origin: Origin
    contribution: Callable[[int, Tensor, list[Tensor]], Factor]


class UseTracker(TorchFunctionMode):
    """Context around forward and backward of one micro-batch.

    Args:
        parameters: name -> tracked parameter.
        constants: tensors without a sample axis (buffers, frozen parameters).
        recorder: gets every use's factor in the backward; knows how many samples there are.
        rows: the sample 0..n-1 that owns each row [r], where rows are not the samples in order.

    Attributes:
        layouts: where the samples of every tensor are.

    Raises (from the forward, inside the context):
        UncoveredUseError, MixedSamplesError, SampleAxisError.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        constants: Iterable[Tensor],
        recorder: Recorder,
        rows: Tensor | None = None,
    ):
        super().__init__()
        self.recorder = recorder
        self.layouts = Layouts(recorder.n, rows)
        self.origins: dict[int, Origin] = {
            id(p): Parameter(name, p) for name, p in parameters.items()
        }
        self.alive: list[Tensor] = []  # derived tensors, kept so that their ids stay theirs
        self.own_functions = OwnFunctions(self.origins, self.alive, self.layouts, recorder)
        for tensor in (*parameters.values(), *constants):
            self.layouts.put(tensor, SHARED)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in TELLS:
            return func(*args, **kwargs)
        if func in BACKWARDS:
            self.recorder.look_at(args[0] if args else kwargs.get("tensors", ()))
            self._penalties(args, kwargs)
            with self:
                return backward(args, kwargs)
        if func is torch.autograd.grad:
            return self._inner_gradient(args, kwargs)
        if func == SETS_GRADIENT and id(args[0]) in self.origins:
            raise set_by_hand(self.origins[id(args[0])].roots)
        leaves = tensors_of(args, kwargs)
        self.own_functions.look(leaves)
        layouts = [self.layouts.of(leaf) for leaf in leaves]
        entry = OPERATIONS.get(func, UNKNOWN)
        constant = {at for at, layout in enumerate(layouts) if layout is SHARED}
        if entry.refusal is not None and len(constant) < len(leaves):
            refuse_mixing(entry.refusal(*args, **kwargs))
        origins = [self.origins.get(id(leaf)) for leaf in leaves]
        if not any(origins) or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
            if len(constant) < len(leaves):
                self.layouts.follow(func, args, kwargs, leaves, layouts, out)
            elif leaves or entry.without_samples:
                self._mark_constant(out)
            return out
        if len(constant) == len(leaves) or takes_no_data(func, entry, args, leaves, constant):
            return self._derived(func, args, kwargs, origins)
        if entry.fused is not None and (self.recorder.fused or entry.same_bits):
            out = entry.fused(self, *args, **kwargs)
            if out is not None:
                self.own_functions.records_itself(out)
                self.layouts.follow(func, args, kwargs, leaves, layouts, out)
                return out
        if entry is UNKNOWN and (inside := opened(func)) is not None:
            with self:
                return inside(*args, **kwargs)
        return self._tapped(func, entry, args, kwargs, leaves, origins, layouts)

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self.recorder.unfound = self.layouts.unfound()

    def _penalties(self, args: tuple, kwargs: dict) -> None:
        """Functions of weights alone that are backpropagated by themselves."""
        roots, seeds = backward_roots(args, kwargs)
        self.own_functions.look(roots)
        for root, b in zip(roots, seeds):
            origin = self.origins.get(id(root))
            if origin is not None and b is not None:
                self.recorder.sink_penalty("backward", origin, Dense(b.detach()[None]))

    def _inner_gradient(self, args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
        """A gradient that the loss itself asks for: its backward is nobody's training."""
        if makes_graph(args, kwargs):
            raise UncoveredUseError(GRADIENT_IN_LOSS)
        self.recorder.paused = True
        try:
            with self:
                return inner_grad(args, kwargs)
        finally:
            self.recorder.paused = False

    # -- what a fused form asks

    def origin(self, tensor: Tensor) -> Origin | None:
        return self.origins.get(id(tensor))

    def parameter(self, tensor: Tensor) -> Origin | None:
        origin = self.origins.get(id(tensor))
        return origin if isinstance(origin, Parameter) else None

    def plain(self, tensor: Tensor) -> bool:
        return self.layouts.of(tensor).plain

    # -- the exact form

    def _tapped(
        self,
        func: Callable,
        entry: Operation,
        args: tuple,
        kwargs: dict,
        leaves: list[Tensor],
        origins: list[Origin | None],
        layouts: list[Layout],
    ) -> Any:
        """The operation's own result, with a tap on the gradient that comes back to it."""
        called = Called(func, entry, leaves)
        out = func(*args, **kwargs)
        called.finished(leaves)
        self.layouts.follow(func, args, kwargs, leaves, layouts, out)
        use = partial(self._result, called, args, kwargs, leaves, origins, layouts)
        if called.before is not None and out is None:  # `h[mask] = w`
            use(leaves[0], called.operation)
            return None
        if isinstance(out, Tensor):
            return use(out, called.operation)
        if type(out) not in (tuple, list):
            raise uncovered(func, _roots(origins), "returns no tensors", leaves)
        return type(out)(use(part, called.part(at)) for at, part in enumerate(out))

    def _result(
        self,
        called: Called,
        args: tuple,
        kwargs: dict,
        leaves: list[Tensor],
        origins: list[Origin | None],
        layouts: list[Layout],
        out: Any,
        operation: Callable,
    ) -> Any:
        """One tensor that came out, with a tap; `operation` gives this one."""
        if not isinstance(out, Tensor) or not out.requires_grad:
            return out
        func, rows = called.func, self.layouts.of(out)
        alone = out.dim() == 0 and not rows.known
        wrong = called.unfit(out, alone)
        if wrong:
            raise uncovered(func, _roots(origins), wrong, leaves)
        if called.copied(out):  # the tap marks what it passes on as changed, so it gets a copy
            out = out.clone()
        own = None if alone else rows
        uses = self._uses(func, operation, args, kwargs, leaves, origins, layouts, own)
        self.origins.pop(id(out), None)  # a function of weights that data was written into
        kept = leaves if called.before is None else [called.before, *leaves[1:]]
        fixed = [layout is SHARED for layout in layouts]
        tapped = self._tap(func, out, kept, fixed, uses, alone)
        self.layouts.put(tapped, rows)
        return tapped

    def _tap(
        self,
        func: Callable,
        out: Tensor,
        leaves: list[Tensor],
        fixed: list[bool],
        uses: list[Use],
        alone: bool,
    ) -> Tensor:
        """The result with a tap on it; `alone`: what comes back belongs to no sample."""
        # what holds samples is saved by autograd, and checkpointed with it
        constants = [leaf.detach() if at else None for leaf, at in zip(leaves, fixed)]
        saved = [leaf for leaf, at in zip(leaves, fixed) if not at]
        recorder, name = self.recorder, getattr(func, "__name__", str(func))
        n, take = (1, recorder.sink_penalty) if alone else (recorder.n, partial(sink, recorder))

        def on_gradient(b: Tensor, leaves: list[Tensor]) -> None:
            for use in uses:
                with Named(func, use.origin.roots, [*leaves, b]):
                    take(name, use.origin, use.contribution(n, b, leaves))

        return Tap.apply(out, on_gradient, constants, *saved)

    def _uses(
        self,
        func: Callable,
        operation: Callable,
        args: tuple,
        kwargs: dict,
        leaves: list[Tensor],
        origins: list[Origin | None],
        layouts: list[Layout],
        rows: Layout | None,
    ) -> list[Use]:
        """Each argument's rule; without rows, of what belongs to no sample."""
        rebuild = rebuilder(args, kwargs)
        shared = {at for at, layout in enumerate(layouts) if not layout.known}
        if rows is not None and (not rows.known or len(shared) == len(leaves)):
            unknown = [x for x, own in zip(leaves, layouts) if not own.known and own is not SHARED]
            about = [*unknown, *leaves][0], self.layouts.n, self.layouts.rows
            raise whose_rows(func, _roots(origins), *about)
        uses = []
        for at, origin in enumerate(origins):
            if origin is None or not leaves[at].requires_grad:
                continue
            try:
                call = Call(operation, leaves, at, shared, rebuild, layouts, rows or SHARED)
                form = find(operation, call) if rows is None else contribution(operation, call)
                uses.append(Use(origin, form))
            except NoRule:
                raise uncovered(func, origin.roots, "has no rule", leaves) from None
        return uses

    def _derived(self, func: Callable, args: tuple, kwargs: dict, origins: list) -> Any:
        """What an operation makes of parameters and constants alone."""
        out, made = derive(func, args, kwargs, origins)
        for tensor, origin in made:
            if origin is None:
                self.origins.pop(id(tensor), None)
            else:
                self.origins[id(tensor)] = origin
                self.alive.append(tensor)
            self.layouts.put(tensor, SHARED)
        return out

    def _mark_constant(self, out) -> None:
        for tensor in tensors_of((out,), {}):
            self.layouts.put(tensor, SHARED)


def _roots(origins: Iterable[Origin | None]) -> list[str]:
    return [root for origin in origins if origin for root in origin.roots]
