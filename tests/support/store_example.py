"""A small run that tests/store write and read: every number follows from step and rank alone."""

import numpy as np
import pyarrow as pa

STEPS, RANKS = 20, 2
TARGETS = ["val", "math"]
METHODS = ["first_order", "path"]
RUN = {
    "targets": TARGETS,
    "methods": METHODS,
    "corpus_digest": "c0ffee",
    "config": {"optim": {"lr": 0.1}},
}
SAMPLES = pa.table(
    {
        "sample_id": np.arange(40),
        "domain": [["wiki", "code", "noise"][i % 3] for i in range(40)],
        "kind": ["clean" if i % 3 < 2 else "symbols" for i in range(40)],
        "doc_ids": [[i, i + 1] for i in range(40)],
    }
)


def terms(step, rank=0):
    """The step's sample ids [n], and float32 values by target and method."""
    rng = np.random.default_rng([step, rank])
    ids = rng.choice(40, size=6, replace=False)
    values = {t: {m: rng.standard_normal(6).astype(np.float32) for m in METHODS} for t in TARGETS}
    return ids, values


def token_values(step, rank=0):
    rng = np.random.default_rng([step, rank, 7])
    return [rng.standard_normal(length).astype(np.float32) for length in rng.integers(0, 4, size=6)]


def ledger_row(step, target, method, ranks=RANKS):
    rng = np.random.default_rng([step, TARGETS.index(target), METHODS.index(method), 11])
    drift, residual = (3 * float(x) for x in rng.standard_normal(2))
    of_ranks = [terms(step, rank)[1][target][method] for rank in range(ranks)]
    values = float(np.sum(of_ranks, dtype=np.float64))
    drop = drift + values + residual
    before = 5.0 - step / 100
    return {
        "step": step,
        "target": target,
        "method": method,
        "loss_before": before,
        "loss_after": before - drop,
        "drop": drop,
        "drift": drift,
        "values": values,
        "residual": residual,
    }


def steps_row(step, ranks=RANKS):
    return {
        "step": step,
        "lr": 0.1 / (step + 1),
        "clip": None if step % 2 else 0.5,
        "loss": 5.0 - step,
        "seconds": 0.25,
        "tokens": 1000 + step,
        "samples": 6 * ranks,
        "grad_norm": np.float32(step),
    }


def write_step(writer, step):
    ids, values = terms(step, writer.rank)
    for target in TARGETS:
        writer.terms(step, ids, target, values[target])
    writer.tokens(step, ids, "val", "path", token_values(step, writer.rank))
    if writer.rank == 0:
        for target in TARGETS:
            for method in METHODS:
                writer.ledger(ledger_row(step, target, method, writer.run["ranks"]))
        writer.steps(steps_row(step, writer.run["ranks"]))


def content(store):
    """All rows of all tables, in an order of their own."""
    return {
        table: store.sql(f"SELECT * FROM {table} ORDER BY ALL").to_pylist()
        for table in ("terms", "steps", "ledger", "tokens", "samples")
    }


def truth(target, method, steps=range(STEPS)):
    """Sum of values and number of uses of all 40 samples, in float64."""
    value, uses = np.zeros(40), np.zeros(40, dtype=int)
    for step in steps:
        for rank in range(RANKS):
            ids, values = terms(step, rank)
            np.add.at(value, ids, values[target][method].astype(np.float64))
            np.add.at(uses, ids, 1)
    return value, uses
