"""Runs of a compiled model, with values and without."""

import pytest

from inrun.train import (
    Run,
)
from tests.support.train_example import config, lines, write_documents


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("compile")
    write_documents(root / "raw")
    return root


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # inductor's own
def test_compiled_run_trains_without_values(root):
    run = Run.start(
        config(
            root,
            "compiled",
            train__compile=True,
            attribution__method=[],
            train__steps=2,
            model__n_layer=1,
            model__dropout=0.0,
        )
    )
    assert run.train() is None
    plain = Run.start(
        config(
            root,
            "eager",
            attribution__method=[],
            train__steps=2,
            model__n_layer=1,
            model__dropout=0.0,
        )
    )
    plain.train()
    a, b = (lines(r.folder)[-1]["val/loss"] for r in (run, plain))
    assert a == pytest.approx(
        b, rel=1e-4
    )  # fused kernels round elsewhere; two AdamW steps do not make more of it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_run_values_its_samples_as_an_eager_one_does(root):
    values = {}
    for name, compiled in (("compiled-values", True), ("eager-values", False)):
        run = Run.start(
            config(
                root,
                name,
                train__compile=compiled,
                attribution__method=[{"kind": "first_order", "update": "sgd"}],
                attribution__route="compiled" if compiled else "tap",
                train__steps=2,
                model__n_layer=1,
                model__dropout=0.0,
            )
        )
        store = run.train()
        values[name] = (
            store.sql("SELECT sum(first_order) AS total FROM terms").column("total").to_pylist()
        )
        ledger = (
            store.sql("SELECT count(*) AS rows FROM ledger WHERE residual IS NOT NULL")
            .column("rows")
            .to_pylist()
        )
        assert ledger[0] > 0  # the drift was evaluated at moved weights, through the compiled model
    assert values["compiled-values"] == pytest.approx(values["eager-values"], rel=1e-3)
