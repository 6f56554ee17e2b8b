"""The engine on Triton kernels, under the interpreter where there is no GPU: the same values as in
plain PyTorch.
"""

import os

import pytest
import torch

import inrun_kernels
from inrun import Attributor, Fused
from tests.support import per_sample
from tests.support.small_models import loss_of, rows, small

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="neither a GPU nor Triton's interpreter",
)


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "first_order"), ("pythia", "first_order"), ("gpt2", "path")]
)
def test_values_on_triton_kernels_equal_those_in_float64(family, method):
    pytest.importorskip("triton")
    train, val = rows(3, 1), rows(2, 2)
    values = {}
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "triton")):
        torch.manual_seed(0)
        model = small(family, torch.float64, n_layer=1).to(dtype)
        attr = Attributor(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            {
                "val": lambda m=model: loss_of(m, val, 0.1),
                "other": lambda m=model: loss_of(m, val[:1], 0.1),
            },
            method,
            route="fused" if method == "first_order" else Fused(memory=0),
        )
        with inrun_kernels.use(backend):
            with attr.batch(range(3)):
                loss_of(model, train, 0.02).backward()
            attr.optimizers[0].step()
        values[dtype] = attr.last_step.values
    for key, value in values[torch.float32].items():
        # float32 products of tensor-core kernels in full precision: as
        # tests.support.small_models.FLOAT32
        assert per_sample.relative_error(value, values[torch.float64][key]) < 1e-5, key
