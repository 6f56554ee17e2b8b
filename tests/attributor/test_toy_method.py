"""A method and a route from outside the package: one file each, used like our own."""

from dataclasses import dataclass, field

import pytest
import torch

from inrun import Attributor
from inrun.attributor.routes import ROUTES, Tap, route
from inrun.methods import Method, method
from inrun.methods.base import KINDS
from inrun.train import AttributionConfig
from tests.support import per_sample
from tests.support.small_models import regression


@dataclass(frozen=True, kw_only=True)
class Scaled(Method):
    """The dot product with the target's gradient alone, times a number (Grad-Dot)."""

    kind: str = field(default="scaled", init=False)
    factor: float = 1.0
    "what the dot product is multiplied by"

    @property
    def known_before(self) -> bool:
        return True


def scaled(what: Scaled, step, target) -> dict[str, torch.Tensor]:
    return {name: what.factor * g for name, g in target.gradient().items()}


@dataclass(frozen=True)
class Counted(Tap):
    """The route of the rules, which counts its micro-batches."""

    kind: str = field(default="counted", init=False)

    def record(self, passes, n):
        COUNTS.append(n)
        return super().record(passes, n)


COUNTS: list[int] = []


def test_a_method_and_a_route_from_outside_are_chosen_by_name_and_in_a_config():
    with KINDS.restored(), ROUTES.restored():
        method("scaled", Scaled)(scaled)
        route(Counted)
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        optimizer = torch.optim.AdamW(model.parameters())
        x, val = torch.randn(5, 3).double(), torch.randn(4, 3).double()
        gradient = per_sample.gradients(model, model(val).square().mean())
        own = [per_sample.gradients(model, model(x[i]).square().sum()) for i in range(5)]
        truth = torch.stack([3.0 * sum((g[p] * gradient[p]).sum() for p in g) for g in own])
        attr = Attributor(
            model,
            optimizer,
            {"val": lambda: model(val).square().mean()},
            ["path", Scaled(factor=3.0)],
            route="counted",
        )
        with attr.batch(range(5)):
            model(x).square().sum().backward()
        optimizer.step()
        attr.close()
        assert per_sample.relative_error(attr.last_step.values["scaled", "val"], truth) < 1e-12
        assert COUNTS == [5]
        given = {"method": [{"kind": "scaled", "factor": 2.0}, "path"], "route": "counted"}
        config = AttributionConfig(method=tuple(given["method"]), route=given["route"])
        assert config.method[0] == Scaled(factor=2.0)
        assert config.route == Counted()
        with pytest.raises(ValueError, match="two entries for the method 'scaled'"):
            method("scaled", Scaled)(lambda what, step, target: {})
    assert "scaled" not in KINDS
    with pytest.raises(ValueError, match="'scaled': choose one of 'path'"):
        Attributor(model, optimizer, {"val": regression(model)}, "scaled")
