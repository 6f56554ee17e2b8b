"""Other people's per-sample gradients under the same cases: torch.func, opacus, dattri.

None of them knows an optimizer's update, so each is asked only where the update is ``lr *
gradient``: the library gives the per-sample gradients (dattri their dot products with the
target's), and the paper's directions are put together here. They are imported when an adapter is
built.
"""

import contextlib
import copy
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inrun.conformance.problem import Batch, Case, Observer, TrainingRun, added, size, state_of

Weights = dict[str, Tensor]


class NotInstalledError(ImportError):
    """The library that an adapter is for is not there."""


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalledError(
            f"{error}; install it with `pip install {name.split('.')[0]}`"
        ) from error


class _Asked:
    """What all adapters of this file share: the cases that make sense, and the two runs."""

    name: str
    same_bits = False

    def supports(self, case: Case) -> str | None:
        formula = case.formula
        if set(case.quantities) - {"values"}:
            return f"asks for {', '.join(sorted(set(case.quantities) - {'values'}))}"
        if formula.credit != "immediate":
            return "no credit for later steps"
        groups = TrainingRun(case).optimizer.param_groups
        plain = all(
            group.get("momentum") == 0 and group["weight_decay"] == 0 and "betas" not in group
            for group in groups
        )
        if case.quantities and not plain and formula.update != "sgd":
            return "knows no update but lr * gradient"
        if case.problem.together and case.quantities:
            return "what the micro-batch decides (masks, experts) cannot be given to it"
        return None

    def values(self, case: Case) -> Mapping[str, Tensor]:
        observer = self.observer()
        case.run(observer)
        observer.detach()
        return {target: torch.stack(steps) for target, steps in observer.found.items()}

    def training(self, case: Case) -> Mapping[str, Tensor]:
        observer = self.observer()
        run = case.run(observer)
        observer.detach()
        return state_of(run)

    def observer(self) -> "_Values":
        raise NotImplementedError


class _Values(Observer):
    """Per-sample gradients from a library; directions and dots from here."""

    def __init__(self):
        self.found: dict[str, list[Tensor]] = {}
        self.parts: list[Weights] = []

    def attach(self, run: TrainingRun) -> None:
        self.run, self.bare = (
            run,
            copy.deepcopy(run.model),
        )  # targets are evaluated on the copy, whatever the library does to the model
        self.parameters = {name: p for name, p in run.model.named_parameters() if p.requires_grad}

    def detach(self) -> None:
        """Give the model back."""

    def before_step(self) -> None:
        g = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        self.parts = []
        norm = torch.sqrt(added((x.sum(0) ** 2).sum() for x in g.values()))
        c = (
            1.0
            if self.run.case.clip is None
            else min(1.0, float(self.run.case.clip / (norm + 1e-6)))
        )
        if "values" in self.run.case.quantities:
            for target, batch in self.run.targets.items():
                V = self._direction(batch, {name: c * x.sum(0) for name, x in g.items()})
                dots = added((x * V[name]).reshape(len(x), -1).sum(1) for name, x in g.items())
                self.found.setdefault(target, []).append(c * dots)

    def _direction(self, batch: Batch, G: Weights) -> Weights:
        formula = self.run.case.formula
        groups = {
            id(p): group["lr"] for group in self.run.optimizer.param_groups for p in group["params"]
        }
        lr = {name: groups[id(p)] for name, p in self.parameters.items()}
        if formula.kind == "first_order":
            return {name: lr[name] * x for name, x in self.gradient(batch, {}).items()}
        if formula.kind == "path":
            V = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
            for node in range(formula.nodes):
                at = {name: (node + 0.5) / formula.nodes * lr[name] * x for name, x in G.items()}
                for name, x in self.gradient(batch, at).items():
                    V[name] += lr[name] / formula.nodes * x
            return V

        step = {name: 0.5 * lr[name] * G[name] for name in self.parameters}
        w = self.weights({})
        with sdpa_kernel(SDPBackend.MATH):  # the fused one cannot be differentiated twice
            loss = self.loss(batch, w)
        first = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        second = torch.autograd.grad(
            sum((g * step[name]).sum() for name, g in zip(w, first)), list(w.values())
        )
        return {name: lr[name] * (g - h).detach() for name, g, h in zip(w, first, second)}

    def weights(self, change: Weights) -> Weights:
        return {
            name: (p.detach() - change.get(name, 0.0)).requires_grad_()
            for name, p in self.parameters.items()
        }

    def loss(self, batch: Batch, weights: Weights) -> Tensor:
        return self.run.problem.target_loss(Functional(self.bare, weights), batch)

    def gradient(self, batch: Batch, change: Weights) -> Weights:
        w = self.weights(change)
        return dict(zip(w, torch.autograd.grad(self.loss(batch, w), list(w.values()))))


class Functional(nn.Module):
    """A model that is called with given weights, and with copies of its buffers."""

    def __init__(self, model: nn.Module, weights: Weights):
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, *args) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return torch.func.functional_call(self.model, ({**self.weights, **buffers},), args)


class TorchFunc(_Asked):
    """``vmap(grad(loss))`` over the samples of a micro-batch."""

    name = "torch.func"

    def observer(self) -> _Values:
        return _TorchFuncValues()


class _TorchFuncValues(_Values):
    @contextlib.contextmanager
    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]) -> Iterator[None]:
        def loss(weights: Weights, sample: Batch) -> Tensor:
            alone = {name: tensor[None] for name, tensor in sample.items()}
            return (
                self.run.problem.rows(Functional(self.run.model, weights), alone).sum()
                / self.run.divisor
            )

        if "values" in self.run.case.quantities:
            per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
            weights = {name: p.detach() for name, p in self.parameters.items()}
            self.parts.append(per_sample(weights, part))
        yield

    def before_step(self) -> None:
        if self.parts:
            super().before_step()


class Opacus(_Asked):
    """``GradSampleModule`` around the model that is trained; ``p.grad_sample`` after each
    backward.
    """

    name = "opacus"

    def __init__(self):
        self.module = _library("opacus.grad_sample").GradSampleModule

    def supports(self, case: Case) -> str | None:
        reason = super().supports(case)
        if reason:
            return reason
        refused = self.module.validate(case.problem.model(), strict=False)
        return f"refused: {str(refused[0])[:60]}" if refused else None

    def observer(self) -> _Values:
        return _OpacusValues(self.module)


class _OpacusValues(_Values):
    def __init__(self, module: Callable):
        super().__init__()
        self.module = module

    def attach(self, run: TrainingRun) -> None:
        super().attach(run)
        self.wrapped = self.module(run.model, batch_first=True, loss_reduction="sum")

    def detach(self) -> None:
        self.wrapped.to_standard_module()

    @contextlib.contextmanager
    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]) -> Iterator[None]:
        yield
        found = {}
        for name, p in self.parameters.items():
            sampled: Any = p  # opacus puts an attribute on it
            g = sampled.grad_sample
            if g is None and p.grad is not None:
                raise RuntimeError(f"{name} has a gradient and no grad_sample")
            if g is None:
                g = torch.zeros(size(part), *p.shape, dtype=p.dtype)
            if not isinstance(g, Tensor) or g.shape[0] != size(part):
                what = f"a list of {len(g)}" if isinstance(g, list) else f"shape {tuple(g.shape)}"
                raise RuntimeError(f"grad_sample of {name} is {what} for {size(part)} samples")
            found[name] = g.detach().clone()
            sampled.grad_sample = None
        self.parts.append(found)


class Dattri(_Asked):
    """``TracInAttributor`` on the weights of each step: dot products of training and validation
    samples, with the learning rate as weight.
    """

    name = "dattri"

    def __init__(self):
        self.tracin = _library("dattri.algorithm.tracin").TracInAttributor
        self.task = _library("dattri.task").AttributionTask

    def supports(self, case: Case) -> str | None:
        reason = super().supports(case)
        if reason is None and case.quantities:
            if case.formula.kind != "first_order":
                reason = "first order only"
            elif case.clip is not None:
                reason = "knows no clipping"
            elif len(TrainingRun(case).optimizer.param_groups) > 1:
                reason = "one learning rate"
        return reason

    def observer(self) -> _Values:
        return _DattriValues(self.tracin, self.task)


class _DattriValues(_Values):
    def __init__(self, tracin: Callable, task: Callable):
        super().__init__()
        self.tracin, self.task = tracin, task
        self.batches: list[Batch] = []

    @contextlib.contextmanager
    def micro(self, first: int, part: Batch, forward: Callable[[], Tensor]) -> Iterator[None]:
        self.batches.append(part)
        yield

    def before_step(self) -> None:
        whole = {name: torch.cat([part[name] for part in self.batches]) for name in self.batches[0]}
        self.batches = []
        if "values" in self.run.case.quantities:
            for target, batch in self.run.targets.items():
                self.found.setdefault(target, []).append(self._tracin(whole, batch))

    def _tracin(self, train: Batch, validation: Batch) -> Tensor:
        problem, model = self.run.problem, self.bare
        model.load_state_dict(self.run.model.state_dict())
        names, count = list(train), problem.count(validation)

        def mean(divisor: float) -> Callable:
            def loss(weights: Weights, sample: tuple[Tensor, ...]) -> Tensor:
                alone = {name: tensor[None] for name, tensor in zip(names, sample)}
                return problem.rows(Functional(model, weights), alone).sum() / divisor

            return loss

        task = self.task(mean(self.run.divisor), model, model.state_dict(), target_func=mean(count))
        trainable = (
            None if all(p.requires_grad for p in model.parameters()) else list(self.parameters)
        )
        attributor = self.tracin(
            task,
            weight_list=torch.tensor(
                [self.run.optimizer.param_groups[0]["lr"]], dtype=torch.float64
            ),
            normalized_grad=False,
            layer_name=trainable,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # its table has the default dtype
        try:
            attributor.projector_kwargs = (
                None  # random projections by default, which are another question
            )
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
                table = attributor.attribute(_loader(train), _loader(validation))
        finally:
            torch.set_default_dtype(before)
        return table.double().sum(1)


def _loader(batch: Batch) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*batch.values()),
        batch_size=size(batch),
        shuffle=False,
        generator=torch.Generator(),  # iterating draws a seed even without shuffling
    )
