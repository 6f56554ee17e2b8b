"""One model type: one step valued by the engine, against a loop of one-sample gradients."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from experiments.survey.adapters import PREFIX, build_adapter
from experiments.survey.build import MIXES, SAMPLES, Built, build
from experiments.survey.inputs import Sample, batch
from experiments.survey.outputs import CannotBuild, first, named
from inrun.attributor import Attributor
from inrun.rules.factors import SampleAxisError

TARGETS, LR = 2, 1e-2
METHODS = ("path", "first_order")
#: other routes, in the order in which they are tried
ROUTES = ("whole", "forward")
#: largest error of a value that is called exact, in units of the largest value: of models that
#: compute in float64 throughout, and of those that go through float32 in places
DOUBLE, SINGLE = 1e-9, 2e-5
#: and of those whose one-sample gradients do not add up to the batch's by plain autograd either, at
#: the most
ROUNDED = 1e-3
Values = dict[str, Tensor]


def survey(model_type: str) -> dict[str, Any]:
    """The row of a type: what happened, and how far its values are from the loop's."""
    row: dict[str, Any] = {"type": model_type}
    began = time.monotonic()
    try:
        adapter = model_type.startswith(PREFIX)
        built = build_adapter(model_type, row) if adapter else build(model_type, row)
        row |= judged(built)
    except CannotBuild as reason:
        row |= {"status": "not built", "why": first(reason)}
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def judged(built: Built) -> dict[str, Any]:
    """The verdict: by the default route, and by another one where that refuses."""
    parameters = [p for p in built.model.parameters() if p.requires_grad]
    row: dict[str, Any] = {
        "loss": "own" if built.kept is None else "of outputs",
        "notes": "; ".join(built.notes),
        "parameters": sum(p.numel() for p in parameters),
        "single": built.single,
    }
    if MIXES in built.notes:
        return row | mixed(built)
    truth, missed = oracle(built)
    if built.batch_norms and missed > DOUBLE:
        built.spell_out()
        truth, missed = oracle(built)
    limit = max(SINGLE if built.single else DOUBLE, min(2 * missed, ROUNDED))
    if limit > (SINGLE if built.single else DOUBLE):
        built.note(f"one-sample gradients miss the batch's by {missed:.0e}")
    try:
        row["error"] = difference(by_default(built), truth)
    except Exception as refusal:
        row |= {"status": status_of(refusal), "why": named(refusal)}
        row |= by_another_route(built, truth, limit)
    else:
        right = row["error"] <= limit
        row["status"] = "exact" if right else "wrong"
    row["notes"] = "; ".join(built.notes)
    for name, holds in {"batchnorm": bool(built.batch_norms), "mixing": built.mixing}.items():
        if holds:
            row[name] = refusal_of(built, name)
    return row


def by_default(built: Built) -> Values:
    """Values by the default route; with rows declared where a sample has several."""
    try:
        return valued(built, "tap")
    except SampleAxisError:
        if not built.owners():
            raise
        found = valued(built, "tap", declared=True)
        built.note("rows= declared")
        return found


def mixed(built: Built) -> dict[str, Any]:
    """The verdict on a loss that is no sum over samples: it has to be refused."""
    try:
        valued(built, "tap")
    except Exception as refusal:
        return {"status": status_of(refusal), "why": named(refusal), "route": "none can"}
    return {"status": "wrong", "why": f"valued, though its loss is {MIXES}"}


def refusal_of(built: Built, what: str) -> str:
    """How the same model is refused with BatchNorm in training, or with outputs that mix."""
    with as_it_was(built):
        if what == "batchnorm":
            for module in built.batch_norms:
                vars(module).pop("forward", None)
                module.train()
        else:
            built.kept = built.mixed
        try:
            valued(built, "tap")
        except Exception as refusal:
            return f"{status_of(refusal)}: {type(refusal).__name__}"
    return "valued"


@contextmanager
def as_it_was(built: Built) -> Iterator[None]:
    """The model's mode, statistics and loss are put back at the end."""
    state = {name: b.detach().clone() for name, b in built.model.named_buffers()}
    kept = built.kept
    try:
        yield
    finally:
        built.kept = kept
        built.freeze()
        with torch.no_grad():
            for name, b in built.model.named_buffers():
                if b.shape == state[name].shape:
                    b.copy_(state[name])


def by_another_route(built: Built, truth: Values, limit: float) -> dict[str, Any]:
    """The first other route that is right, and its error; else what became of the last one."""
    tried: dict[str, Any] = {}
    for name in ROUTES:
        try:
            error = difference(valued(built, name), truth)
        except Exception as refusal:
            tried = {"route": f"none: {name} {named(refusal)}"[:200]}
            continue
        if error <= limit:
            return {"route": name, "route_error": error}
        tried = {"route": f"none: {name} is off", "route_error": error}
    return tried


# -- the oracle


def oracle(built: Built) -> tuple[Values, float]:
    """Method -> values [n] of a step of SGD, by plain autograd one sample at a time.

    First order: ``lr <g_i, grad L(w)>``. Path, one node, SGD: the same at the middle of the step.
    Beside them by how much the samples' gradients miss the batch's, as values in units of the
    largest: what the model's own rounding, or a kink, makes of them.
    """
    weights = {n: p for n, p in built.model.named_parameters() if p.requires_grad}
    target = target_of(built)
    each = [gradients(built.share * built.loss(s, 1), weights) for s in built.samples(0)]
    whole = gradients(built.loss(batch(built.samples(0)), SAMPLES), weights)
    here = gradients(target(), weights)
    with moved(weights, each):
        half = gradients(target(), weights)
    values = {
        method: LR * torch.stack([inner(g, V) for g in each])
        for method, V in (("path", half), ("first_order", here))
    }
    missed = [inner({n: whole[n] - sum(g[n] for g in each)}, here) for n in weights]
    return values, float(LR * torch.stack(missed).abs().sum() / scale(values["first_order"]))


@contextmanager
def moved(weights: Mapping[str, Tensor], each: list[dict[str, Tensor]]) -> Iterator[None]:
    """The weights in the middle of the step, for as long as the block lasts."""
    before = {n: w.detach().clone() for n, w in weights.items()}
    with torch.no_grad():
        for n, w in weights.items():
            w.sub_(LR / 2 * sum(g[n] for g in each))
    try:
        yield
    finally:
        with torch.no_grad():
            for n, w in weights.items():
                w.copy_(before[n])


def target_of(built: Built) -> Callable[[], Tensor]:
    """The loss of other samples."""
    validation = batch(built.samples(1000, TARGETS))
    return lambda: built.loss(validation, TARGETS)


def gradients(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), found)}


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(g.double() * b[n].double()).sum() for n, g in a.items()]).sum()


def difference(found: Values, truth: Values) -> float:
    """Largest difference of a value, in units of the method's largest; no number is infinity."""
    return max(
        float(torch.nan_to_num((found[m] - truth[m]).abs(), nan=torch.inf).max() / scale(truth[m]))
        for m in METHODS
    )


def scale(values: Tensor) -> Tensor:
    return values.abs().max().clamp_min(1e-300)


# -- the engine


def valued(built: Built, route: str, declared: bool = False) -> Values:
    """Method -> values [n] of one step of SGD; the weights are put back.

    Args:
        declared: say whose each row is, with `rows=`.
    """
    trained = [p for p in built.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=LR)
    optimizer.zero_grad()
    targets = {"val": target_of(built)}
    attr = Attributor(built.model, optimizer, targets, list(METHODS), route=route)
    try:
        with attr:
            for ids, loss in micro_batches(built, route):
                more: dict[str, Any] = {"forward": loss} if route == "forward" else {}
                if declared:
                    more["rows"] = built.owners()
                with attr.batch(ids, **more):
                    loss().backward()
            optimizer.step()
            step = attr.last_step
        return {m: step.values[m, "val"].double() for m in METHODS}
    finally:
        with torch.no_grad():
            for p, w in zip(trained, before):
                p.copy_(w)


def micro_batches(built: Built, route: str) -> list[tuple[list[int], Callable[[], Tensor]]]:
    """(ids, loss): all samples in one, or one each for the route that needs it."""
    samples: list[Sample] = built.samples(0)
    if route != "whole":
        together = batch(samples)
        return [(list(range(SAMPLES)), lambda: built.loss(together, SAMPLES))]
    return [([i], lambda s=s: built.share * built.loss(s, 1)) for i, s in enumerate(samples)]


def status_of(error: BaseException) -> str:
    """Refused by the engine itself, or died of a library's words."""
    return "refused" if type(error).__module__.startswith("inrun") else "died"
