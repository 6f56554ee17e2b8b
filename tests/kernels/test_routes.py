"""Which implementation and which route answer a call, and what the floor may import."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import inrun_kernels
from inrun_kernels import cost
from inrun_kernels.backend import backend_for
from tests.support.kernel_oracles import operands

CPU = torch.device("cpu")


def run(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


def work(n, t, i, o, k, dtype=torch.float32):
    return cost.Work(n, t, i, o, k, dtype)


def test_import_needs_no_triton_and_imports_none():
    code = """
import sys
sys.modules["triton"] = None     # any import of triton raises ImportError
import inrun_kernels, torch
inrun_kernels.wgrad_dots(torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(1, 5, 4))
assert not any(name.startswith("inrun_kernels.jit") for name in sys.modules)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_transformers_does_not_take_the_projects_folder_for_the_distribution_kernels():
    code = """
import transformers
from importlib.metadata import distributions
from transformers.utils.import_utils import is_kernels_available
installed = any(d.metadata["Name"] == "kernels" for d in distributions())
assert installed or not is_kernels_available()
transformers.GPT2Config()
import inrun_kernels
"""
    result = run(code, cwd=Path(__file__).parents[2], HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr


def test_the_switch_is_a_call_and_a_context():
    x = torch.randn(2)
    assert backend_for(x) == "torch"
    with inrun_kernels.use("reference"):
        assert backend_for(x) == "reference"
        with inrun_kernels.use("torch"):
            assert backend_for(x) == "torch"
        assert backend_for(x) == "reference"
    assert backend_for(x) == "torch"
    before = inrun_kernels.use("reference")
    assert backend_for(x) == "reference"
    before.__exit__()
    assert backend_for(x) == "torch"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="auto, reference, torch, triton"):
        inrun_kernels.use("cuda")
    assert backend_for(torch.randn(1)) == "torch"


def test_an_exception_leaves_the_switch_as_it_was():
    with pytest.raises(ZeroDivisionError), inrun_kernels.use("reference"):
        1 / 0
    assert backend_for(torch.randn(1)) == "torch"


def test_triton_without_gpu_or_interpreter_says_what_to_do():
    code = """
import torch, inrun_kernels
with inrun_kernels.use("triton"):
    inrun_kernels.wgrad_dots(torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(1, 5, 4))
"""
    result = run(code, TRITON_INTERPRET="0")
    assert "RuntimeError" in result.stderr
    assert "TRITON_INTERPRET=1" in result.stderr


def test_float64_anywhere_makes_results_float64():
    a, b, V = operands(2, 3, 4, 5, 1, torch.float32)
    assert inrun_kernels.wgrad_dots(a, b, V)[1].dtype == torch.float32
    assert inrun_kernels.wgrad_dots(a, b, V.double())[1].dtype == torch.float64
    assert inrun_kernels.outer_dots(a.double(), b, V).dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (work(4, 512, 768, 3072, 1), "split"),
        (work(4, 512, 768, 3072, 4), "split"),
        (work(128, 1, 768, 768, 1), "contract"),
        (work(128, 1, 256, 1024, 4), "contract"),
        (work(32, 32, 768, 768, 4, torch.bfloat16), "split"),
    ],
)
def test_short_samples_are_contracted_and_long_ones_split_on_a_cpu(
    shape, expected, monkeypatch, tmp_path
):
    """Expected are the faster routes in bench.csv, by factors of 1.4 and more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost.forget_measurements()
    assert cost.choose("wgrad_dots", shape, "torch", CPU) == expected


def test_predictions_follow_hand_counted_flops_and_bytes():
    machine = cost.Machine(
        "unit", dict.fromkeys([torch.float32, torch.bfloat16], 1.0), bandwidth=1.0, call=0.0
    )
    w = work(2, 3, 5, 7, 1)
    product = 2 * 2 * 3 * 5 * 7
    gemm = max(product, 4 * 2 * 3 * 12 + 4 * 35)
    assert cost.seconds("outer_dots", "contract", w, machine) == gemm
    hot = 2 * 35 * 4 * (4 + 1)
    assert cost.seconds("wgrad_dots", "split", w, machine) == gemm + hot
    written = 2 * 35 * 4
    assert cost.seconds("wgrad_dots", "bmm", w, machine) == gemm + 2 * written + 4 * 35


def test_a_measured_table_beats_the_model_and_a_preference_beats_both(monkeypatch, tmp_path):
    from inrun_kernels import bench

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = work(4, 512, 768, 3072, 1)
    assert cost.choose("wgrad_dots", shape, "torch", CPU) == "split"
    row = {"op": "wgrad_dots", "n": 4, "t": 512, "i": 768, "o": 3072, "k": 1, "dtype": "float32"}
    rows = [
        row | {"route": "split", "seconds": "2.0"},
        row | {"route": "contract", "seconds": "1.0"},
    ]
    path = bench.calibrate(rows, CPU)
    assert path.parent.parent == tmp_path
    assert cost.choose("wgrad_dots", shape, "torch", CPU) == "contract", "as measured"
    assert cost.choose("wgrad_dots", work(4, 512, 768, 768, 1), "torch", CPU) == "split", (
        "not measured"
    )
    with cost.prefer(wgrad_dots="split"):
        assert cost.choose("wgrad_dots", shape, "torch", CPU) == "split"
    path.unlink()
    cost.forget_measurements()
    assert cost.choose("wgrad_dots", shape, "torch", CPU) == "split"


def test_preferences_that_cannot_be_met_are_refused():
    with pytest.raises(ValueError, match="known routes"):
        cost.prefer(wgrad_dots="magic")
    with pytest.raises(ValueError, match="known routes"):
        cost.prefer(sum_dots="split")
    with cost.prefer(wgrad_dots="fused"), pytest.raises(ValueError, match="backend has"):
        inrun_kernels.wgrad_dots(*operands(1, 2, 3, 4, 1, torch.float32))


def test_roofline_is_marked_as_a_prediction_and_orders_the_methods():
    from inrun_kernels.cost import __main__ as roofline

    text = roofline.table(["gpt2"], ["a100", "h100"], 16)
    assert text.startswith("PREDICTED")
    model, machine = roofline.MODELS["gpt2"], cost.MACHINES["a100"]
    # 6 * 16 * 1024 tokens * 123.5 M weights in linear layers, and 0.93 TFLOP of causal attention.
    assert 3 * model.forward_flops(16) == pytest.approx(
        6 * 16 * 1024 * 123.53e6 + 0.93e12, rel=5e-3
    )
    methods = dict(roofline.overheads(model, 16, machine))
    assert methods["dots: fused, k=1"] < methods["dots after the backward: contract, k=1"]
    assert methods["dots after the backward: contract, k=1"] < methods["dots: pairwise Grams, m=1"]


def test_benchmark_rows_are_complete_and_add_to_the_table(tmp_path):
    from inrun_kernels import bench

    rows = bench.bench_products((2, 4, 8, 8, 1, torch.float32), 2, CPU, "torch")
    rows = bench.stamp(rows + bench.bench_head((2, 4, 8, 20, 1, torch.float32), 2, CPU), CPU)
    for _ in range(2):
        bench.append(tmp_path / "bench.csv", rows)
    with (tmp_path / "bench.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 2 * len(rows) == 10
    assert {row["route"] for row in read} == {"split", "contract", "fused"}
    assert all(value for row in read for value in row.values())
    assert all(float(row["seconds"]) > 0 and float(row["ratio"]) > 0 for row in read)
