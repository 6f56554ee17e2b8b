"""Training in several processes, one for each device, joined when a run begins.

`torchrun` or Slurm start them:

    torchrun --nproc-per-node 8 -m experiments pretrain experiment=gpt2

A run of several processes is the run of one: the logical batch is dealt out, gradients are
averaged, one process writes the log and the checkpoints, and each writes the values of its own
chunks. With another number of processes the sums of a step have another order, and results differ
by rounding.

A process that is silent (a machine that hangs, a process that was stopped) ends the run after
`train.timeout` seconds, and the others say which one it is.
"""

import atexit
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from inrun.attributor import ProcessError, Processes
from inrun.config import require
from inrun.train.config import RunConfig

#: for what takes its time once: preparing a corpus
PATIENCE = timedelta(days=2)
#: seconds in which the others notice what one has noticed
NOTICE_S = 10.0
_SILENCE = re.compile(r"time(d )?out|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


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
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return Processes(dist.group.WORLD)


def with_timeout(processes: Processes, seconds: int) -> Processes:
    """The same processes, which wait for one another no longer than this."""
    if processes.alone:
        return processes
    return Processes(dist.new_group(timeout=timedelta(seconds=seconds)))


@contextmanager
def silence_told(processes: Processes, seconds: int, folder: Path) -> Iterator[None]:
    """In this block waiting in vain for another process is a ProcessError that names it."""
    try:
        yield
    except RuntimeError as error:  # gloo's; NCCL's, where it does not end the process itself
        if processes.alone or isinstance(error, ProcessError) or not _SILENCE.search(str(error)):
            raise
        silent = _silent(processes)
        who = f"rank {', '.join(map(str, silent))}" if silent else "another process"
        raise ProcessError(
            f"rank {processes.rank}: {who} of {processes.size} is silent or has ended (waited for "
            f"up to train.timeout={seconds} s). What was stored before stays. Next: look at that "
            f"process and its machine, then start all again with resume={folder}"
        ) from error


def _silent(processes: Processes) -> list[int]:
    """Ranks that do not notice, within seconds, what this one has noticed.

    Each writes into the store by which the processes have met; it is no part of the group.
    """
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, timeout=timedelta(seconds=NOTICE_S))
        store.set(f"inrun/noticed/{processes.rank}", "")
        others = [rank for rank in range(processes.size) if rank != processes.rank]
        until = time.monotonic() + NOTICE_S
        while others and time.monotonic() < until:
            others = [rank for rank in others if not store.check([f"inrun/noticed/{rank}"])]
            time.sleep(0.1)
        return others
    except (KeyError, ValueError, RuntimeError):  # the store is gone, or there was none
        return []


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
