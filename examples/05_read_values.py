"""Questions to a finished run: `python examples/05_read_values.py [FOLDER OF VALUES]`.

Without a folder a small run is made first.
"""

import sys
import tempfile

import pyarrow as pa
import torch
import torch.nn.functional as F

from inrun import Attributor, Recording, ValueStore


def small_run(folder: str) -> str:
    """Two classes, 100 samples each; a third of class 1 is noise."""
    torch.manual_seed(0)
    label = torch.arange(200) % 2
    noisy = (label == 1) & (torch.arange(200) % 3 == 0)
    x = torch.randn(200, 4) + torch.where(noisy, 0.0, label * 2.0 - 1)[:, None]
    kind = [f"class {k}{', noise' if bad else ''}" for k, bad in zip(label.tolist(), noisy)]
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    targets = {"clean": lambda: F.cross_entropy(model(x[~noisy]), label[~noisy])}
    samples = pa.table({"sample_id": range(200), "kind": kind})
    attr = Attributor(model, optimizer, targets, "path", store=Recording(folder, samples))
    for _ in range(60):
        ids = torch.randint(200, (20,))
        with attr.batch(ids):
            F.cross_entropy(model(x[ids]), label[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attr.close()
    return folder


folder = sys.argv[1] if len(sys.argv) > 1 else small_run(tempfile.mkdtemp())
with ValueStore(folder) as store:
    target, method = store.targets[0], store.methods[0]
    total = store.ledger(target, method)
    print(f"drop {total.drop:.3f} = drift {total.drift:.3f} + values {total.values:.3f}")
    print(f"  + residual {total.residual:.3f}; efficiency gap {total.gap:+.1%}")
    print("best:", store.top(2, target, method).to_pylist())
    for row in store.by("kind", target, method).to_pylist():
        print(f"{row['kind']:16} {row['mean']:+.1e} per sample, {row['negative']:.0%} negative")
    for row in store.over("step", 3, target=target, method=method).to_pylist():
        print(f"steps {row['first_step']} to {row['last_step']}: {row['value']:+.3f}")
    print(store.sql("SELECT count(*) AS rows, max(step) AS last FROM terms").to_pylist())
