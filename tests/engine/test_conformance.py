"""Our engine under the conformance suite, and the suite under itself."""

import sys
from dataclasses import replace

import pytest
import torch

from inrun.conformance import CASES, Dattri, Engine, NotInstalledError, Opacus, TorchFunc, judge
from inrun.conformance.optimizers import sgd
from inrun.conformance.oracle import OracleError, truth
from inrun.conformance.run import main
from tests.support.conformance_truth import BY_NAME, expected
from tests.support.mutants import MUTANTS

UNSUPPORTED = {
    "forward route, path, AdamW"
}  # reported as such: no per-sample squares without a tape


@pytest.mark.parametrize("name", BY_NAME)
def test_our_engine_conforms_and_leaves_training_the_same_bits(name):
    outcome = judge(Engine(), BY_NAME[name], expected(name))
    assert outcome.status == ("not supported" if name in UNSUPPORTED else "pass"), outcome.says


@pytest.mark.parametrize(
    "name",
    [
        "linear, few tokens",
        "linear, folded tokens",
        "tied weights",
        "a layer used three times",
        "LoRA beside a frozen layer",
        "activation checkpointing",
        "ignored labels, micro-batches",
        "fused head",
        "fused head, tied",
        "2 x 3",
        "clipping, AdamW",
        "second order",
        "AdamW, path, micro-batches",
        "momentum, secant",
    ],
)
def test_our_engine_conforms_when_linear_layers_take_the_dots(name):
    outcome = judge(Engine("fused"), BY_NAME[name], expected(name))
    assert outcome.status == "pass", outcome.says


@pytest.mark.parametrize(
    "name",
    [
        "second order",
        "2 x 3",
        "writes to buffers",
        "tied weights",
        "dropout, known late",
        "momentum, path",
        "AdamW, path, micro-batches",
    ],
)
def test_our_engine_conforms_when_it_runs_the_batch_again_instead_of_keeping_it(name):
    outcome = judge(Engine("replay"), BY_NAME[name], expected(name))
    assert outcome.status == "pass", outcome.says


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning"
)  # vmap of fused attention
def test_per_sample_gradients_of_torch_func_agree_with_the_oracle():
    """A second opinion about the oracle: vmap(grad) wherever it can be asked."""
    outcomes = [judge(TorchFunc(), BY_NAME[name], expected(name)) for name in BY_NAME]
    passed = [o for o in outcomes if o.status == "pass"]
    failed = [o for o in outcomes if o.status == "fail"]
    # it has no saved tensor hooks, so no activation checkpointing; vmap cannot write a sample's
    # mean to a shared buffer
    assert {o.case for o in outcomes if o.status == "error"} == {
        "activation checkpointing",
        "second order, checkpointing",
        "writes to buffers, forward route",
    }
    assert not failed
    assert len(passed) > 50


def test_every_kind_of_layer_takes_part_in_training():
    """A parameter whose gradient is 0 by accident would be judged by nothing."""
    for name in (
        "LayerNorm",
        "GroupNorm",
        "convolution 2d",
        "plain parameters",
        "class token",
        "LoRA multiplied in",
        "positions [T]",
    ):
        state = expected(name)[1]
        gradients = {key: g for key, g in state.items() if key.startswith("gradient ")}
        assert gradients
        assert all(float(g.abs().max()) > 1e-6 for g in gradients.values()), name


def test_a_sample_without_labels_is_worth_nothing():
    values = expected("ignored labels")[0]["val"][0]
    assert (values == 0).tolist() == [False] * 5 + [True]


class _Off(Engine):
    """An engine that is off in one way."""

    def __init__(self, values=lambda found: found, training=lambda state: state):
        super().__init__()
        self.change_values, self.change_training = values, training

    def values(self, case):
        return self.change_values(dict(super().values(case)))

    def training(self, case):
        return self.change_training(dict(super().training(case)))


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (_Off(values=lambda found: {"val": found["val"] * (1 + 1e-8)}), "val off by 1.0e-08"),
        (_Off(values=lambda found: {}), "val off by inf"),
        (_Off(values=lambda found: {"val": found["val"][:, :-1]}), "val off by inf"),
        (_Off(values=lambda found: {"val": found["val"] * torch.nan}), "val off by inf"),
        (
            _Off(
                training=lambda state: {
                    **state,
                    "weight 0.bias": state["weight 0.bias"] * (1 + 1e-15),
                }
            ),
            "not the same bits",
        ),
        (_Off(training=lambda state: {**state, "weight new": torch.zeros(1)}), "left behind"),
        (
            _Off(training=lambda state: {k: v for k, v in state.items() if k != "random"}),
            "there without it",
        ),
    ],
)
def test_what_is_wrong_is_named(engine, says):
    outcome = judge(engine, BY_NAME["linear, few tokens"], expected("linear, few tokens"))
    assert outcome.status == "fail"
    assert says in outcome.says


def test_an_engine_that_raises_is_an_error_and_not_a_pass():
    def broken(found):
        raise ZeroDivisionError("by zero\nsecond line")

    outcome = judge(
        _Off(values=broken), BY_NAME["linear, few tokens"], expected("linear, few tokens")
    )
    assert outcome.status == "error"
    assert outcome.says == "ZeroDivisionError: by zero"


def test_the_oracle_refuses_a_training_that_it_does_not_describe():
    with pytest.raises(OracleError, match="update of"):
        truth(replace(BY_NAME["linear, few tokens"], optimizer=sgd(maximize=True)))


def test_the_command_prints_a_table_and_succeeds(capsys):
    assert main(["inrun", "torch.func", "--case", "linear, few"]) == 0
    printed = capsys.readouterr().out
    assert "linear, few tokens" in printed
    assert "inrun: 1 pass" in printed
    assert "torch.func: 1 pass" in printed


def test_the_command_fails_when_our_engine_does(monkeypatch, capsys):
    next(m for m in MUTANTS if m.name == "values have the printed sign").apply(monkeypatch)
    assert main(["--case", "linear, few"]) == 1
    assert "val off by 2.0e+00" in capsys.readouterr().out


@pytest.mark.parametrize(("adapter", "library"), [(Opacus, "opacus"), (Dattri, "dattri")])
def test_a_library_that_is_not_installed_is_reported_as_such(adapter, library, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotInstalledError, match=f"pip install {library}"):
        adapter()
    assert main([library, "--case", "linear, few"]) == 0
    assert f"{library}: not installed" in capsys.readouterr().out


def test_an_unknown_engine_or_case_is_a_usage_error(capsys):
    for arguments in (["nobody"], ["--case", "no such case"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "choose from inrun" in capsys.readouterr().err


def test_names_of_cases_are_unique():
    assert len(BY_NAME) == len(CASES)
