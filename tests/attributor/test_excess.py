"""First order's frozen slope says how far it is off, and is used where it is not."""

import json
import logging
import math

import pytest
import torch

from inrun import Attributor
from inrun.methods import FirstOrder
from inrun.methods.step import Step
from tests.support import per_sample
from tests.support.small_models import loss_of, rows, small

STEPS = 12


def training(method, steps=STEPS, lr=1e-3, route="tap", state=None, begun=None, **options):
    """An Attributor around AdamW steps on changing batches: (attributor, results by step)."""
    torch.manual_seed(0)
    model, val = small("gpt2"), rows(2, 99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    if begun:
        model.load_state_dict(begun[0])
        optimizer.load_state_dict(begun[1])
    attr = Attributor(
        model, optimizer, {"val": lambda: loss_of(model, val, 0.1)}, method, route=route, **options
    )
    if state:
        attr.load_state_dict(state)
    results = []
    for step in range(attr.step, steps):
        with attr.batch(range(4)):
            loss_of(model, rows(4, step), 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
        results.append(attr.last_step)
    return attr, results, (model.state_dict(), optimizer.state_dict())


def test_young_steps_are_valued_as_by_path_and_the_rest_by_the_frozen_slope_once_it_is_trusted():
    allowed = FirstOrder(largest_excess=1e6, name="allowed")
    _, results, _ = training([allowed, FirstOrder(largest_excess=1e-6, name="never"), "path"])
    for step, result in enumerate(results):
        values = {name: v for (name, _), v in result.values.items()}
        assert per_sample.relative_error(values["never"], values["path"]) < 1e-12
        assert (per_sample.relative_error(values["allowed"], values["path"]) < 1e-12) == (step < 3)
        assert result.frozen == ({"allowed"} if step >= 3 else set())
        assert set(result.excess) == {"allowed", "never"}


def test_the_excess_is_the_sum_by_the_frozen_slope_over_that_by_the_secant():
    """Of the values: their sums by two methods that take the target's gradient at w - u(0)."""
    methods = [
        FirstOrder(largest_excess=math.inf, name="frozen"),
        FirstOrder(state="current", name="current"),
    ]
    _, results, _ = training(methods)
    for result in results[3:]:  # before that, current's slopes are partly averaged
        ratio = result.sums["frozen", "val"] / result.sums["current", "val"]
        assert result.excess["frozen"] == pytest.approx(ratio - 1, rel=1e-9)
        assert "current" not in result.excess


def test_for_sgd_the_slope_is_exact_and_nothing_waits(monkeypatch):
    monkeypatch.setattr(Step, "watch", None)
    model, train, val = small("gpt2"), rows(4, 1), rows(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attr = Attributor(model, optimizer, {"val": lambda: loss_of(model, val, 0.1)}, "first_order")
    for _ in range(2):
        with attr.batch(range(4)):
            loss_of(model, train, 0.02).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert attr.last_step.excess == {}


def test_a_resumed_run_trusts_the_slope_where_the_other_did():
    method = FirstOrder(largest_excess=0.6)
    _, whole, _ = training(method)
    assert 0 < sum(bool(r.frozen) for r in whole) < STEPS
    attr, first, begun = training(method, steps=7)
    state = json.loads(json.dumps(attr.state_dict()))
    attr, second, _ = training(method, state=state, begun=begun)
    for one, other in zip(whole, [*first, *second]):
        assert torch.equal(one.values["first_order", "val"], other.values["first_order", "val"])
        assert one.frozen == other.frozen
    assert attr.ledger.quality["first_order", "val"].steps == STEPS


def test_route_compiled_gives_no_values_until_the_slope_is_trusted_and_says_so(tmp_path, caplog):
    method = FirstOrder(largest_excess=0.6)
    _, tapped, _ = training(FirstOrder(largest_excess=math.inf))
    with caplog.at_level(logging.WARNING):
        attr, results, _ = training(method, route="compiled", store=tmp_path / "values")
        store = attr.close()
    valued = {r.step: r for r in results if r is not None}
    assert valued
    assert min(valued) > 3
    for step, result in valued.items():
        found, expected = (r.values["first_order", "val"] for r in (result, tapped[step]))
        assert per_sample.relative_error(found, expected) < 1e-9
    passed = STEPS - len(valued)
    assert caplog.text.count("its samples have no values") == 1
    assert f"{passed} steps have no values" in caplog.text
    with store:
        rows_of = store.sql("SELECT step, valued, excess FROM steps ORDER BY step").to_pylist()
        assert [row["step"] for row in rows_of if row["valued"] == 1] == sorted(valued)
        # of the slopes at w - u(0), as the frozen slope's own excess is
        assert [row["excess"] for row in rows_of] == [
            pytest.approx(r.excess["first_order"], rel=1e-6) for r in tapped
        ]
        assert store.said() == attr.ledger.said()
