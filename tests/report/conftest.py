"""A small store with texts, two targets and hostile names, and its report."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from inrun.report import write_report
from inrun.store import ValueStore, ValueWriter

TARGETS, METHODS, STEPS, SAMPLES = ["prose", "code"], ["path", "first_order"], 12, 40
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)
DOMAINS = ["novels", "python", "<b>bold</b>"]


@pytest.fixture(scope="session")
def values_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "values"
    rng = np.random.default_rng(0)
    texts = [f"text {i}\n  of {DOMAINS[i % 3]}" for i in range(SAMPLES)]
    texts[0] = HOSTILE
    with ValueWriter(folder, {"targets": TARGETS, "methods": METHODS}) as writer:
        writer.samples(
            pa.table(
                {
                    "sample_id": np.arange(SAMPLES),
                    "domain": [DOMAINS[i % 3] for i in range(SAMPLES)],
                    "text": texts,
                }
            )
        )
        loss = dict.fromkeys(itertools.product(TARGETS, METHODS), 500.0)
        for step in range(STEPS):
            ids = rng.choice(SAMPLES, size=8, replace=False)
            for target in TARGETS:
                values = {m: (rng.standard_normal(8) + ids % 3).astype(np.float32) for m in METHODS}
                writer.terms(step, ids, target, values)
                for method in METHODS:
                    total = float(values[method].astype(np.float64).sum())
                    before, drop = loss[target, method], 1.0 + total + 0.125
                    loss[target, method] -= drop
                    writer.ledger(
                        {
                            "step": step,
                            "target": target,
                            "method": method,
                            "loss_before": before,
                            "loss_after": loss[target, method],
                            "drop": drop,
                            "drift": 1.0,
                            "values": total,
                            "residual": 0.125,
                        }
                    )
    return folder


@pytest.fixture(scope="session")
def values(values_folder):
    with ValueStore(values_folder) as store:
        yield store


@pytest.fixture(scope="session")
def page(values, tmp_path_factory):
    pytest.importorskip("vl_convert")
    return write_report(values, tmp_path_factory.mktemp("page"))
