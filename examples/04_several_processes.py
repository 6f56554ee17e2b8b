"""Two processes that train together and write one store (DistributedDataParallel over gloo).

python examples/04_several_processes.py
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from inrun import Attributor, ValueStore

PROCESSES = 2


def train(rank: int, folder: str) -> None:
    """What each process does; DistributedDataParallel alone tells the Attributor of the others."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    torch.manual_seed(0)  # the same data and the same first weights in all of them
    x, val_x = torch.randn(64, 8), torch.randn(32, 8)
    y, val_y = (x.sum(1) > 0).long(), (val_x.sum(1) > 0).long()
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = {"val": lambda: F.cross_entropy(model(val_x), val_y)}
    attr = Attributor(parallel, optimizer, targets, "path", store=f"{folder}/values")
    for step in range(20):
        ids = torch.arange(8) + 8 * ((PROCESSES * step + rank) % 8)  # each has its own samples
        with attr.batch(ids):
            F.cross_entropy(parallel(x[ids]), y[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attr.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    mp.spawn(train, (folder,), nprocs=PROCESSES)
    with ValueStore(f"{folder}/values") as values:
        total = values.ledger()
        print(f"{len(values.values())} samples were used by {PROCESSES} processes in 20 steps")
        print(f"the loss fell by {total.drop:.3f}, of it values {total.values:.3f}")
