"""The utility of one real step of a real optimizer: the truth that values are held against.

    U(S) = L(w - u(0)) - L(w - u(c sum_{i in S} g_i))      positive = the coalition lowered the loss

`u` is not a formula here: the optimizer's own `step()` runs on a copy of the model, once for each
coalition. Per-sample gradients come from a plain loop of backward passes. So nothing is shared with
the attribution engine, and what `inrun.shapley` makes of this game can judge it.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class StepGame:
    """The game of one step: its players are the samples of the batch, `utility` is U(S).

        values = inrun.shapley.exact(game.utility, game.n)

    Args:
        model: as it stands before the step; copied, never touched. Use float64 where differences of
            losses would drown in the rounding of float32.
        optimizer: as it stands before the step, or several that step together; every one is built
            anew from copied parameter groups and its state dict, so that hooks on it do not run.
        sample_losses: model -> [n], the samples' shares of the loss that is backpropagated: their
            sum is that loss, divisors included.
        target: model -> scalar validation loss. Both closures must use the model they are given,
            and give the same result for the same weights.
        clip: largest global norm of the gradient, as in `torch.nn.utils.clip_grad_norm_`; the
            factor of the full batch is applied to every coalition. None: no clipping.

    A parameter that no sample reaches has no gradient, and the optimizer passes over it, as in the
    real step. One that samples of the batch reach, but none of the coalition, has a zero gradient:
    momentum and decay act.

    Attributes:
        n: number of samples. factor: the c of the formula. gradients: name -> c g_i, [n, *shape],
            for the parameters that some sample reaches.

    Raises:
        ValueError: an optimizer's parameter does not belong to the model, or `sample_losses` does
            not give a vector.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        sample_losses: Callable[[nn.Module], Tensor],
        target: Callable[[nn.Module], Tensor],
        clip: float | None = None,
    ):
        self._model = copy.deepcopy(model)
        self._model.zero_grad(set_to_none=True)
        self._target = target
        self._devices = sorted({p.device.index for p in self._model.parameters() if p.is_cuda})
        self._random_state = [
            torch.get_rng_state(),
            *(torch.cuda.get_rng_state(d) for d in self._devices),
        ]
        given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        copies = dict(zip(map(id, model.parameters()), self._model.parameters()))
        self._optimizers = [_rebuilt(o, copies) for o in given]
        self._states = [copy.deepcopy(o.state_dict()) for o in given]
        self._tensors = {
            **dict(self._model.named_parameters()),
            **dict(self._model.named_buffers()),
        }
        self._start = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        moved = {
            id(p) for o in self._optimizers for group in o.param_groups for p in group["params"]
        }
        self._parameters = {
            name: p
            for name, p in self._model.named_parameters()
            if id(p) in moved and p.requires_grad
        }
        self.gradients = self._sample_gradients(sample_losses)
        self.n = len(next(iter(self.gradients.values())))
        self.factor = 1.0 if clip is None else _clip_factor(self.gradients, clip)
        for gradient in self.gradients.values():
            gradient.mul_(self.factor)
        self._loss_before = self._loss()
        self._loss_nobody = self._loss_after(np.zeros(self.n, dtype=bool))

    def utility(self, mask: np.ndarray) -> float:
        """U(S) in the target's units (nats), S as a boolean mask [n]."""
        return self._loss_nobody - self._loss_after(mask)

    @property
    def drift(self) -> float:
        """``L(w) - L(w - u(0))``: what momentum and weight decay do without any sample."""
        return self._loss_before - self._loss_nobody

    @property
    def drop(self) -> float:
        """``L(w) - L(w - u(G))``: what the target loses in the whole step; drift + U(all)."""
        return self._loss_before - self._loss_after(np.ones(self.n, dtype=bool))

    def weights_after(self, mask: np.ndarray) -> dict[str, Tensor]:
        """name -> weights after the optimizer's step with the coalition's gradients, as copies."""
        with self._step(mask):
            return {name: p.detach().clone() for name, p in self._parameters.items()}

    def _loss_after(self, mask: np.ndarray) -> float:
        with self._step(mask):
            return self._loss()

    @contextmanager
    def _step(self, mask: np.ndarray):
        """Inside: the copy after its step.

        After: weights, buffers and optimizer state are the bits they were.
        """
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (self.n,):
            raise ValueError(
                f"a coalition is a boolean mask [{self.n}], got {mask.dtype} {mask.shape}"
            )
        members = torch.from_numpy(np.flatnonzero(mask))
        for name, gradient in self.gradients.items():
            self._parameters[name].grad = gradient[members.to(gradient.device)].sum(0)
        for optimizer, state in zip(self._optimizers, self._states):
            # a state dict that is loaded shares its tensors, and the step writes into them
            optimizer.load_state_dict(copy.deepcopy(state))
            optimizer.step()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._tensors.items():
                    tensor.copy_(self._start[name])

    def _loss(self) -> float:
        with torch.no_grad(), self._same_randomness():
            return float(self._target(self._model))

    def _sample_gradients(self, sample_losses: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad(), self._same_randomness():
            losses = sample_losses(self._model)
            if losses.ndim != 1:
                raise ValueError(
                    f"sample_losses returned shape {list(losses.shape)}, expected [n]: one "
                    "share per sample"
                )
            weights = list(self._parameters.values())
            rows = [
                torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
                for loss in losses
            ]
        with torch.no_grad():
            for name, tensor in self._tensors.items():  # buffers that the forward wrote
                tensor.copy_(self._start[name])
        found = {}
        for k, (name, weight) in enumerate(self._parameters.items()):
            parts = [row[k] for row in rows]
            if any(part is not None for part in parts):
                found[name] = torch.stack(
                    [torch.zeros_like(weight) if part is None else part for part in parts]
                )
        if not found:
            raise ValueError("no sample's loss depends on a parameter that the optimizer updates")
        return {name: gradient.detach() for name, gradient in found.items()}

    @contextmanager
    def _same_randomness(self):
        """Dropout is the same in every evaluation.

        Nobody else's random numbers are used up.
        """
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._random_state[0])
            for device, state in zip(self._devices, self._random_state[1:]):
                torch.cuda.set_rng_state(state, device)
            yield


def _rebuilt(
    optimizer: torch.optim.Optimizer, copies: dict[int, nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer of the same class and settings over the copied parameters."""
    foreign = [
        p for group in optimizer.param_groups for p in group["params"] if id(p) not in copies
    ]
    if foreign:
        raise ValueError(
            f"{type(optimizer).__name__} updates {len(foreign)} parameters that are not the "
            f"model's, first of shape {list(foreign[0].shape)}; "
            "give the model that it was built from"
        )
    groups = [
        {**group, "params": [copies[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    accepted = inspect.signature(type(optimizer)).parameters
    return type(optimizer)(
        groups, **{key: v for key, v in optimizer.defaults.items() if key in accepted}
    )


def _clip_factor(gradients: dict[str, Tensor], max_norm: float) -> float:
    total = torch.stack([gradient.sum(0).norm() for gradient in gradients.values()]).norm()
    # the 1e-6 is torch.nn.utils.clip_grad_norm_'s
    return min(1.0, max_norm / (float(total) + 1e-6))
