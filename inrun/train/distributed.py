"""Training in several processes, one for each device, joined when a run begins.

`torchrun` or Slurm start them:

    torchrun --nproc-per-node 8 -m experiments pretrain experiment=gpt2

A run of several processes is the run of one: the logical batch is dealt out, gradients are
averaged, one process writes the log and the checkpoints, and each writes the values of its own
chunks. With another number of processes the sums of a step have another order, and results differ
by rounding.
"""

import atexit
import os

import torch
import torch.distributed as dist

from inrun.attributor import Processes
from inrun.config import require
from inrun.train.config import RunConfig


def joined(device: str) -> Processes:
    """The processes of this run: those that are joined already, or by the environment.

    That is WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; without it this one alone.
    device: as in `TrainConfig`. Small facts travel by gloo, so that exchanging them waits for no
    GPU.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        atexit.register(dist.destroy_process_group)
    return Processes(dist.group.WORLD)


def refuse_processes(config: RunConfig, processes: Processes) -> None:
    """ConfigError for what one process does and several do not."""
    if processes.alone:
        return
    train, next_step = config.train, "Next: change it, or start a single process"
    require(
        f"{processes.size} processes",
        (
            train.batch_size >= processes.size,
            f"train.batch_size={train.batch_size} chunks cannot be dealt to {processes.size} "
            f"processes. {next_step}",
        ),
        (
            not getattr(config.model_config(), "dropout", 0.0),
            f"dropout: masks of several processes are not kept in a checkpoint. {next_step}",
        ),
        (
            not train.compile,
            f"train.compile: a compiled model is trained in one process. {next_step}",
        ),
    )
