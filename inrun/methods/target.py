"""A validation loss as a function of the weights: its value, gradient and Hessian-vector product,
here or at moved weights.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import inrun_kernels
from inrun.ghost.backward import grad
from inrun.ghost.modes import Expand, Substitute
from inrun.methods.untouched import NonFiniteTargetError, TargetError, Untouched
from inrun.rules.embedding import Lookups


class Target:
    """A named closure ``() -> scalar loss`` that reads the model.

    Evaluations leave no trace: not on `.grad`, the random state, or the buffers.

    Args:
        name: as it stands in the store.
        closure: evaluates the loss with the model as it is; whatever reduction it uses is the
            target.
        parameters: name -> tracked parameter.
        model: whose buffers are restored after each evaluation.
        fused: gradients may be summed in another order than torch's own (inrun.rules.fused), which
            saves passes over token tables.
        reuse: keep each gradient until `refresh`, and give it again at later weights.
        around: a context for each evaluation.
        shared: tensors -> their sums over the processes whose closures give parts of the loss; None
            where the closure gives the whole.
    """

    def __init__(
        self,
        name: str,
        closure: Callable[[], Tensor],
        parameters: Mapping[str, Tensor],
        model: nn.Module,
        fused: bool = False,
        reuse: bool = False,
        around: Callable[[], AbstractContextManager] = nullcontext,
        shared: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ):
        self.name, self.closure, self.parameters, self.fused = (
            name,
            closure,
            parameters,
            fused,
        )
        self._around, self._shared = around, shared
        self.untouched = Untouched(name, parameters, dict(model.named_buffers()))
        self._reuse = reuse
        self._kept: dict[Hashable, dict[str, Tensor]] = {}
        # of this step, by key; None: at the weights as they are
        self._gradients: dict[Hashable, dict[str, Tensor]] = {}
        self._losses: dict[Hashable, float] = {}

    def forget(self) -> None:
        """The weights have moved: drop what was cached for the old ones."""
        self._gradients, self._losses = {}, {}

    def refresh(self) -> None:
        """Drop the gradients that were kept for later weights."""
        self._kept = {}

    def loss(self, at: Mapping[str, Tensor] | None = None, key: Hashable = None) -> float:
        """L(w), or the loss at the weights given by name (the others stay).

        What was evaluated under the same key since the weights moved is given again.
        """
        known = at is None or key is not None
        if known and key in self._losses:
            return self._losses[key]
        moved = {self.parameters[name]: value for name, value in (at or {}).items()}
        with torch.no_grad():
            loss = float(self._evaluate(moved))
        if known:
            self._losses[key] = loss
        return loss

    def gradient(
        self,
        at: Callable[[], Mapping[str, Tensor]] | None = None,
        key: Hashable = None,
        keep: bool = False,
    ) -> dict[str, Tensor]:
        """grad L by parameter name, for the parameters that the loss depends on.

        Args:
            at: gives weights by name, the others stay; None: the current weights.
            key: of these weights. With `reuse`, what was found under the same key since the last
                `refresh` is given again.
            keep: give it again until `forget`, as is done for the current weights.
        """
        if key in self._kept:
            return self._kept[key]
        if key in self._gradients:
            return self._gradients[key]
        moved = {} if at is None else at()
        leaves = {
            name: moved[name].detach().requires_grad_() if name in moved else p
            for name, p in self.parameters.items()
        }
        lookups = Lookups() if self.fused else None
        originals = {name: self.parameters[name] for name in moved if name in leaves}

        def once(loss, inputs):
            both = grad([loss], [*inputs, *originals.values()])
            found = _all_moved(self.name, both, len(inputs), list(originals))
            return found if lookups is None else lookups.add(inputs, found)

        cached = at is None or keep
        found = self._whole(
            self._differentiate(leaves, once, noted=(key,) if cached else (), outer=lookups)
        )
        gradients = {name: g.to_dense() for name, g in zip(leaves, found) if g is not None}
        if not gradients:
            raise TargetError(
                f"target {self.name!r}: the loss does not depend on the weights it was to be "
                "evaluated at; a model inside torch.compile must be traced with this context "
                "active (call the compiled model, not a graph that was exported before), or give "
                "the closure the uncompiled model"
            )
        if cached:
            self._gradients[key] = gradients
        if self._reuse:
            self._kept[key] = gradients
        return gradients

    def kept(self, key: Hashable) -> dict[str, Tensor] | None:
        """The gradient that was taken under this key, if it is still there."""
        return self._gradients.get(key, self._kept.get(key))

    def gradient_and_hvp(
        self, direction: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """grad L(w) and ``H_L(w) d`` for a direction d by parameter name; double backward, with
        attention in its differentiable form.
        """
        leaves = self.parameters

        def twice(loss, inputs):
            first = grad([loss], inputs, create_graph=True)
            pairs = [
                (g, direction[name])
                for name, g in zip(leaves, first)
                if g is not None and g.requires_grad and name in direction
            ]
            second = _twice(self.name, pairs, inputs) if pairs else [None] * len(inputs)
            return [None if g is None else g.detach() for g in first], second

        # fused attention cannot be differentiated twice
        with sdpa_kernel(SDPBackend.MATH):
            first, second = self._differentiate(
                leaves, twice, noted=(None,), inner=Expand(inrun_kernels.cross_entropy_sum_twice)
            )
        gradient = {name: g for name, g in zip(leaves, self._whole(first)) if g is not None}
        hvp = {
            name: torch.zeros_like(gradient[name]) if h is None else h.detach()
            for name, h in zip(leaves, self._whole(second))
            if name in gradient
        }
        return gradient, hvp

    def _whole(self, parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """One derivative for each parameter, with what other processes have of it; a parameter on
        which one process's part does not depend may be in another's.
        """
        if self._shared is None:
            return parts
        return self._shared(
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self.parameters.values(), parts)
            ]
        )

    def _differentiate(
        self,
        leaves: Mapping[str, Tensor],
        differentiate: Callable,
        noted: tuple[Hashable, ...],
        outer=None,
        inner=None,
    ):
        substitution = {
            p: leaves[name] for name, p in self.parameters.items() if leaves[name] is not p
        }
        with torch.enable_grad():
            return self._evaluate(
                substitution, differentiate, list(leaves.values()), noted, outer, inner
            )

    def _evaluate(
        self,
        substitution: Mapping[Tensor, Tensor],
        differentiate: Callable | None = None,
        inputs: list | None = None,
        noted: tuple[Hashable, ...] = (),
        outer: TorchFunctionMode | None = None,
        inner: TorchFunctionMode | None = None,
    ):
        """The loss, or its derivatives; checkpointed closures recompute inside, so both happen
        under the substitution and the modes around and within it. The loss is `noted` by its key.
        """
        self.untouched.note()
        devices = list({p.device for p in self.parameters.values() if p.is_cuda})
        with (
            self._around(),
            torch.random.fork_rng(devices=devices),
            torch.autograd.set_multithreading_enabled(False),
            outer or nullcontext(),
            Substitute(substitution) if substitution else nullcontext(),
            inner or nullcontext(),
        ):
            loss = self.closure()
            self._check(loss, needs_grad=differentiate is not None)
            whole = loss.detach() if self._shared is None else self._shared([loss.detach()])[0]
            self._refuse_non_finite(whole)
            if noted:
                self._losses[noted[0]] = float(whole)
            result = whole if differentiate is None else differentiate(loss, inputs)
        self.untouched.restore()
        return result

    def _check(self, loss, needs_grad: bool) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = (
                f"a tensor of shape {tuple(loss.shape)}"
                if isinstance(loss, Tensor)
                else f"a {type(loss).__name__}"
            )
            raise TargetError(
                f"target {self.name!r}: the closure returned {what}; it must return the "
                "scalar loss, as a tensor"
            )
        if needs_grad and not loss.requires_grad:
            raise TargetError(
                f"target {self.name!r}: the loss does not depend on the model's parameters. It "
                "must be computed in the closure, with gradients enabled, by the model given to "
                "the Attributor"
            )

    def _refuse_non_finite(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            raise NonFiniteTargetError(
                f"target {self.name!r}: the loss is {float(loss)}. Has the run diverged, or "
                "does the target have no label?"
            )


def _all_moved(
    target: str, found: Sequence[Tensor | None], inputs: int, moved: list[str]
) -> Sequence[Tensor | None]:
    """The derivatives at the moved weights, if the loss depends on no weight as it is."""
    for name, g in zip(moved, found[inputs:]):
        if g is not None:
            raise TargetError(
                f"target {target!r}: parameter {name} is given to a torch.autograd.Function "
                "or a compiled region as it is, where no other weights can take its place, and "
                "the method looks at the target at other weights. Give it a function of the "
                "parameter: `Function.apply(x, 1 * self.weight)`"
            )
    return found[:inputs]


def _twice(
    target: str, pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    try:
        return grad([g for g, _ in pairs], inputs, [d.to(g.dtype) for g, d in pairs])
    except NotImplementedError as missing:  # "the derivative for '_cdist_backward' is not ..."
        raise TargetError(
            f"target {target!r}: torch has no second derivative of its loss ({missing}); "
            "method='path' and method='first_order' need none"
        ) from missing
