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
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inrun.ghost.again import not_in_place, unfit
from inrun.ghost.arguments import TELLS, rebuilder, tensors_of
from inrun.ghost.backward import BACKWARDS, backward, inner_grad, makes_graph
from inrun.ghost.errors import (
    ONE_AT_A_TIME,
    MixedSamplesError,
    Named,
    UncoveredUseError,
    uncovered,
    whose_rows,
)
from inrun.ghost.layout import Layouts
from inrun.ghost.origin import Parameter, derive, takes_no_data
from inrun.ghost.tape import Recorder
from inrun.rules import OPERATIONS, Factor, Origin
from inrun.rules.cut import contribution
from inrun.rules.layout import SHARED, Layout
from inrun.rules.registry import UNKNOWN, Call, NoRule, Operation

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


class _Tap(torch.autograd.Function):
    """Identity. Its backward hands (b, saved leaves) to the sink and passes b on untouched."""

    @staticmethod
    def forward(ctx, out, sink, constants, *saved):
        ctx.save_for_backward(*saved)
        ctx.sink, ctx.constants = sink, constants
        ctx.mark_dirty(
            out
        )  # hand back the very tensor, not a view of it: in-place operations on it stay legal
        return out

    @staticmethod
    def backward(ctx, b):
        saved = iter(ctx.saved_tensors)
        # detached: what the sink keeps must not hold the graph, which holds the sink (a cycle that
        # no collector sees)
        leaves = [next(saved).detach() if leaf is None else leaf for leaf in ctx.constants]
        # the mode is active in the user's backward too; what happens here is ours
        with torch._C.DisableTorchFunction(), torch.no_grad():
            ctx.sink(b.detach(), leaves)
        return b, None, None, *(None for leaf in ctx.constants if leaf is None)


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
        for tensor in (*parameters.values(), *constants):
            self.layouts.put(tensor, SHARED)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in TELLS:
            return func(*args, **kwargs)
        if func in BACKWARDS:
            self.recorder.look_at(args[0] if args else kwargs.get("tensors", ()))
            with self:
                return backward(args, kwargs)
        if func is torch.autograd.grad:
            return self._inner_gradient(args, kwargs)
        if func == SETS_GRADIENT and id(args[0]) in self.origins:
            raise UncoveredUseError(
                f"parameter {', '.join(self.origins[id(args[0])].roots)}: its .grad is set by hand "
                "inside the batch, so that nobody saw which sample it came from; let "
                "loss.backward() fill it"
            )
        leaves = tensors_of(args, kwargs)
        layouts = [self.layouts.of(leaf) for leaf in leaves]
        entry = OPERATIONS.get(func, UNKNOWN)
        if entry.refusal is not None and (reason := entry.refusal(*args, **kwargs)):
            raise MixedSamplesError(reason)
        origins = [self.origins.get(id(leaf)) for leaf in leaves]
        constant = {at for at, layout in enumerate(layouts) if layout is SHARED}
        if not any(origins) or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
            if len(constant) < len(leaves):
                self.layouts.follow(func, args, kwargs, leaves, layouts, out)
            elif not any(origins) and (leaves or entry.without_samples):
                self._mark_constant(out)
            return out
        if len(constant) == len(leaves) or takes_no_data(func, entry, args, leaves, constant):
            return self._derived(func, args, kwargs, origins)
        if entry.fused is not None and (self.recorder.fused or entry.same_bits):
            out = entry.fused(self, *args, **kwargs)
            if out is not None:
                self.layouts.follow(func, args, kwargs, leaves, layouts, out)
                return out
        return self._tapped(func, entry, args, kwargs, leaves, origins, layouts)

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self.recorder.unfound = self.layouts.unfound()

    def _inner_gradient(self, args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
        """A gradient that the loss itself asks for: its backward is nobody's training."""
        if makes_graph(args, kwargs):
            raise UncoveredUseError(
                "torch.autograd.grad(create_graph=True) inside the batch: the loss contains a "
                "gradient (a gradient penalty), and a second backward through it would be added to "
                f"the samples' parts. Take the gradient without a graph; or say {ONE_AT_A_TIME}"
            )
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
    ) -> Tensor:
        """The operation's own result, with a tap on the gradient that comes back to it."""
        operation, before = not_in_place(func, entry, leaves)
        version = leaves[0]._version
        out = func(*args, **kwargs)
        written = leaves[0] if before is not None and out is None else out
        if not isinstance(written, Tensor):
            raise uncovered(func, _roots(origins), "returns several tensors", leaves)
        if not written.requires_grad:
            return out
        wrong, copied = unfit(entry, written, before, leaves[0]._version != version)
        if written.dim() == 0 and self.recorder.n > 1:
            wrong = "gives one number for the whole batch; add up after it (reduction='none')"
        if wrong:
            raise uncovered(func, _roots(origins), wrong, leaves)
        if copied:  # the tap marks what it passes on as changed, so it gets a copy
            out = written = written.clone()
        self.layouts.follow(func, args, kwargs, leaves, layouts, out)
        uses = self._uses(func, operation, args, kwargs, leaves, origins, layouts, written)
        # what holds samples is saved by autograd, and checkpointed with it
        constants, saved = _split(leaves if before is None else [before, *leaves[1:]], layouts)
        self.origins.pop(id(written), None)  # a function of weights that data was written into
        name, n, sink = getattr(func, "__name__", ""), self.recorder.n, self.recorder.sink

        def on_gradient(b: Tensor, leaves: list[Tensor]) -> None:
            for use in uses:
                with Named(func, use.origin.roots, [*leaves, b]):
                    sink(name, use.origin, use.contribution(n, b, leaves))

        tapped = _Tap.apply(written, on_gradient, constants, *saved)
        self.layouts.put(tapped, self.layouts.of(written))
        return None if out is None else tapped

    def _uses(
        self,
        func: Callable,
        operation: Callable,
        args: tuple,
        kwargs: dict,
        leaves: list[Tensor],
        origins: list[Origin | None],
        layouts: list[Layout],
        written: Tensor,
    ) -> list[Use]:
        rebuild, rows = rebuilder(args, kwargs), self.layouts.of(written)
        shared = {at for at, layout in enumerate(layouts) if not layout.known}
        if not rows.known or len(shared) == len(leaves):
            unknown = [x for x, own in zip(leaves, layouts) if not own.known and own is not SHARED]
            raise whose_rows(func, _roots(origins), [*unknown, *leaves][0], self.layouts.n)
        uses = []
        for at, origin in enumerate(origins):
            if origin is None or not leaves[at].requires_grad:
                continue
            call = Call(operation, leaves, at, shared, rebuild, layouts, rows)
            try:
                uses.append(Use(origin, contribution(operation, call)))
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


def _split(leaves: list[Tensor], layouts: list[Layout]) -> tuple[list[Tensor | None], list[Tensor]]:
    """(what holds no samples, None in the places of the others; the others)."""
    fixed = [layout is SHARED for layout in layouts]
    constants = [leaf.detach() if at else None for leaf, at in zip(leaves, fixed)]
    return constants, [leaf for leaf, at in zip(leaves, fixed) if not at]


def _roots(origins: Iterable[Origin | None]) -> list[str]:
    return [root for origin in origins if origin for root in origin.roots]
