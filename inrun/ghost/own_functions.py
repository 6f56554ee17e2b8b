"""Functions with a backward of their own (torch.autograd.Function) that are given parameters.

No mode sees their call; what it sees is a tensor whose graph begins with one. The backward is
linear in its output gradients, so each sample's part is what the function's own backward makes of
the gradients with all other samples' rows zero. It runs n times more, at once, since what it saved
is gone afterwards.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from inrun.ghost.arguments import tensors_of
from inrun.ghost.errors import Named, name_of, uncovered, whose_rows
from inrun.ghost.layout import Layouts
from inrun.ghost.origin import NoTangentError, Parameter
from inrun.ghost.tape import Recorder
from inrun.rules import Dense, Origin
from inrun.rules.factors import wide
from inrun.rules.layout import SHARED, Layout
from inrun.rules.masked import only

#: whose functions are seen otherwise: ours record themselves; a compiled region has no rows
_OTHERS = ("inrun", "torch._functorch", "torch._dynamo", "torch._inductor")


class OfWeights(Origin):
    """What a function with its own backward makes of parameters alone."""

    at_once = True

    def __init__(self, node, index: int, inputs: dict[int, Origin], value: Tensor):
        self.node, self.index, self.inputs, self.value = node, index, inputs, value.detach()
        self.roots = tuple(dict.fromkeys(r for origin in inputs.values() for r in origin.roots))
        self.dtype = value.dtype

    def jvp(self, root: str, V: Tensor) -> Tensor:
        raise NoTangentError(f"{name_of(self.node)} has a backward, but no forward derivative")

    def vjp(self, root: str, g: Tensor) -> Tensor:
        with Named(self.node, self.roots, [self.value]):
            found = _backward(self.node, {self.index: g.to(self.value.dtype)})
        parts = []
        for at, origin in self.inputs.items():
            part = found[at]
            if root in origin.roots and part is not None:
                parts.append(origin.vjp(root, wide(part)))
        return torch.stack(parts).sum(0)


class OwnFunctions:
    """Finds them at the first tensor that an operation is given of each.

    Args:
        origins: id of a tensor -> where it came from; what is made of weights alone is added.
        alive: those tensors.
        layouts: where the samples of every tensor are.
        recorder: gets what the backward finds.
    """

    def __init__(
        self,
        origins: dict[int, Origin],
        alive: list[Tensor],
        layouts: Layouts,
        recorder: Recorder,
    ):
        self.origins, self.alive, self.layouts = origins, alive, layouts
        self.recorder = recorder
        self._outputs: dict[int, dict[int, Layout]] = {}
        self._nodes: list = []  # kept, so that their ids stay theirs

    def records_itself(self, out: object) -> None:
        """What a fused form gave: it tells the recorder in its own backward."""
        for tensor in tensors_of((out,), {}):
            if isinstance(tensor.grad_fn, BackwardCFunction):
                tensor.grad_fn.inrun_inputs = {}
                self._nodes.append(tensor.grad_fn)
                self._outputs[id(tensor.grad_fn)] = {}

    def look(self, leaves: Sequence[Tensor]) -> None:
        """Take note of the functions that these tensors came out of."""
        for leaf in leaves:
            node = leaf.grad_fn
            if isinstance(node, BackwardCFunction) and not _is_seen(node):
                if id(node) not in self._outputs:
                    self._nodes.append(node)
                    self._outputs[id(node)] = {}
                    self._found(node, leaf)
                elif leaf.output_nr not in self._outputs[id(node)]:
                    self._output(node, leaf)

    def _inputs(self, node) -> dict[int, Origin]:
        """Place of an argument -> the parameter, or function of parameters, that it was."""
        made = {id(tensor.grad_fn): tensor for tensor in self.alive}
        wanted = [at for at, needed in enumerate(node.needs_input_grad) if needed]
        edges = [edge for edge, _ in node.next_functions if edge is not None]
        found = {}
        for at, edge in zip(wanted, edges):
            tensor = getattr(edge, "variable", made.get(id(edge)))
            origin = None if tensor is None else self.origins.get(id(tensor))
            if origin is not None:
                found[at] = origin
        return found

    def _found(self, node, leaf: Tensor) -> None:
        node.inrun_inputs = self._inputs(node)
        if not node.inrun_inputs:
            return
        self._output(node, leaf)
        if self.layouts.of(leaf) is not SHARED:
            node.register_prehook(self._hook(node))

    def _output(self, node, leaf: Tensor) -> None:
        """One of the tensors that came out."""
        layout = self.layouts.of(leaf)
        self._outputs[id(node)][leaf.output_nr] = layout
        if not node.inrun_inputs:
            return
        roots = [root for origin in node.inrun_inputs.values() for root in origin.roots]
        if layout is SHARED:
            origin = OfWeights(node, leaf.output_nr, node.inrun_inputs, leaf)
            self.origins[id(leaf)] = origin
            self.alive.append(leaf)
        elif leaf.dim() == 0 and not layout.known:
            what = "gives one number for the whole batch"
            raise uncovered(node, roots, what, [leaf])
        elif not layout.known:
            raise whose_rows(node, roots, leaf, self.layouts.n, self.layouts.rows)

    def _hook(self, node) -> Callable:
        def before_backward(gradients: tuple[Tensor | None, ...]) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                self._take(node, gradients)

        return before_backward

    def _take(self, node, gradients: tuple[Tensor | None, ...]) -> None:
        layouts, inputs, n = self._outputs[id(node)], node.inrun_inputs, self.recorder.n
        b = {at: g for at, g in enumerate(gradients) if g is not None and at in layouts}
        roots = [root for origin in inputs.values() for root in origin.roots]
        found: dict[int, list[Tensor]] = {at: [] for at in inputs}
        with Named(node, roots, list(b.values())):
            for i in range(n):
                own = {at: g if n == 1 else only(g, layouts[at], i) for at, g in b.items()}
                parts = _backward(node, own)
                for at, rows in found.items():
                    part = parts[at]
                    value = inputs[at].value
                    rows.append(wide(torch.zeros_like(value) if part is None else part.detach()))
        for at, rows in found.items():
            sink(self.recorder, name_of(node), inputs[at], Dense(torch.stack(rows)))


def sink(recorder: Recorder, operation: str, origin: Origin, factor) -> None:
    """Hand over one use; at once by parameter, where its origin cannot be asked later."""
    if not getattr(origin, "at_once", False):
        recorder.sink(operation, origin, factor)
        return
    for root in origin.roots:
        rows = [wide(origin.vjp(root, factor.dense(i))) for i in range(recorder.n)]
        parameter = Parameter(root, rows[0])
        parameter.dtype = origin.dtype  # what it was computed in, not what it is added up in
        recorder.sink(operation, parameter, Dense(torch.stack(rows)))


def _is_seen(node) -> bool:
    return node._forward_cls.__module__.startswith(_OTHERS)


def _backward(node, b: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The function's own backward for these output gradients, zeros for the others."""
    full = [
        b[at] if at in b else torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
        for at, meta in enumerate(node._input_metadata)
    ]
    found = node.apply(*full)
    return found if isinstance(found, tuple) else (found,)
