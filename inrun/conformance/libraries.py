"""Other people's per-sample gradients under the same cases: torch.func, opacus, dattri.

None of them knows an optimizer's update, so each is asked only where the update is ``lr *
gradient``: the library gives the per-sample gradients (dattri their dot products with the
target's), and the paper's directions are put together here. They are imported when an adapter is
built.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from inrun.conformance.library import Functional, Library, LibraryValues, imported
from inrun.conformance.problem import Batch, Case, TrainingRun, Weights, size


class TorchFunc(Library):
    """``vmap(grad(loss))`` over the samples of a micro-batch."""

    name = "torch.func"

    def observer(self) -> LibraryValues:
        return _TorchFuncValues()


class _TorchFuncValues(LibraryValues):
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


class Opacus(Library):
    """``GradSampleModule`` around the model that is trained; ``p.grad_sample`` after each
    backward.
    """

    name = "opacus"

    def __init__(self):
        self.module = imported("opacus.grad_sample").GradSampleModule

    def supports(self, case: Case) -> str | None:
        reason = super().supports(case)
        if reason:
            return reason
        refused = self.module.validate(case.problem.model(), strict=False)
        return f"refused: {str(refused[0])[:60]}" if refused else None

    def observer(self) -> LibraryValues:
        return _OpacusValues(self.module)


class _OpacusValues(LibraryValues):
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


class Dattri(Library):
    """``TracInAttributor`` on the weights of each step: dot products of training and validation
    samples, with the learning rate as weight.
    """

    name = "dattri"

    def __init__(self):
        self.tracin = imported("dattri.algorithm.tracin").TracInAttributor
        self.task = imported("dattri.task").AttributionTask

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

    def observer(self) -> LibraryValues:
        return _DattriValues(self.tracin, self.task)


class _DattriValues(LibraryValues):
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
