"""What a run says of its own values: one function, one wording."""

import json
import math

import pytest

from inrun.store import Quality, ValueStore, ValueWriter


def account(residuals, utilities, sizes=None) -> Quality:
    quality = Quality()
    for step, (residual, utility) in enumerate(zip(residuals, utilities)):
        quality.values(step, sizes[step] if sizes else 1.0)
        quality.account(step, residual, utility)
    return quality


def test_residuals_of_both_signs_do_not_cancel():
    quality = account([0.5, -0.5], [1.0, -1.0])
    assert quality.unexplained == 0.5


@pytest.mark.parametrize(
    ("residual", "kind", "said"),
    [
        (0.10, "path", ""),
        (0.11, "path", "values are approximate, ranks hold"),
        (0.40, "first_order", "values are approximate, ranks hold"),
        (
            0.41,
            "first_order",
            "do not explain this run: use path (sum |residual| / sum |U| is",
        ),
        (0.41, "path", "use more nodes, Path(nodes=3), or a smaller learning rate"),
    ],
)
def test_the_wording_follows_from_the_share(residual, kind, said):
    lines = account([residual] * 2, [1.0] * 2).said(kind)
    assert len(lines) == bool(said)
    assert said in " ".join(lines)


def test_the_steps_that_carry_most_are_named():
    (line,) = account([0.1, -3.0, 0.2, 1.0, 0.0], [1.0] * 5).said("first_order")
    assert line.endswith("most of it in steps 1 (70%), 3 (23%), 2 (5%))")


def test_a_step_that_holds_much_of_all_values_is_named_in_runs_that_are_long_enough():
    sizes = [1.0] * 49
    assert account([0.0] * 49, [1.0] * 49, [*sizes[1:], 20.0]).said() == []
    (line,) = account([0.0] * 50, [1.0] * 50, [20.0, *sizes]).said()
    assert line.startswith("step 0 holds 29% of all |value|")
    assert account([0.0] * 50, [1.0] * 50, [5.0, *sizes]).said() == []


def test_where_drift_was_not_measured_a_step_tells_nothing():
    quality = account([None, 0.2], [None, 1.0])
    assert quality.unexplained == pytest.approx(0.2)
    assert account([None], [None]).unexplained is None


def test_the_frozen_slope_says_by_how_much_it_misstates_the_steps():
    quality = account([0.0] * 4, [1.0] * 4)
    for step, excess in ((1, 0.3), (2, -0.5)):
        quality.slope(step, excess)
    quality.passed_over = 2
    frozen, passed = quality.said("first_order")
    assert frozen == (
        "slope frozen before the step in 2 of 4 steps; misstates their sums by 40% on average, "
        "most at step 2 (-50%)"
    )
    assert passed.startswith("2 steps have no values")


def test_a_checkpoint_holds_the_account():
    quality = account([0.1, -3.0], [1.0, 2.0])
    quality.slope(1, 0.5)
    assert Quality.of_state(json.loads(json.dumps(quality.state()))) == quality


def test_a_store_gives_the_account_that_its_run_gave(tmp_path):
    run = {"targets": ["val"], "methods": ["mine"]}
    run["attribution"] = {"methods": {"mine": {"kind": "first_order"}}}
    expected = Quality()
    with ValueWriter(tmp_path / "values", run) as writer:
        for step in range(60):
            values = [0.5, -0.25 * step, 16.0 if step == 3 else 0.0]
            writer.terms(step, [7, 8, 9], "val", {"mine": values})
            expected.values(step, math.fsum(map(abs, values)))
            drift = None if step == 5 else 0.125
            residual = None if drift is None else 0.0625 * step
            row = {"step": step, "target": "val", "method": "mine", "loss_before": 4.0}
            row |= {"loss_after": 3.0, "drop": 1.0, "drift": drift, "values": 0.5}
            writer.ledger({**row, "residual": residual})
            expected.account(step, residual, None if drift is None else 0.875)
            frozen = float(step > 50)
            if frozen:
                expected.slope(step, -0.25)
            said = {"excess": -0.25, "frozen": frozen, "valued": 1.0}
            plain = dict.fromkeys(("lr", "clip", "loss", "seconds", "tokens", "samples"))
            writer.steps({"step": step, **plain, **said})
    with ValueStore(tmp_path / "values") as store:
        assert store.quality() == expected
        assert store.said() == [f"val, mine: {line}" for line in expected.said("first_order")]
        assert len(store.said()) == 2
