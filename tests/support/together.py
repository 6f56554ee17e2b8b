"""Several processes that run the same function together, joined by gloo, and what each of them
returned.
"""

import multiprocessing
import multiprocessing.connection
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


class Died(RuntimeError):
    """One of the processes did not end by itself."""


def together(size: int, function: Callable, *arguments) -> list:
    """[function(rank, *arguments) of each rank]; what they return is saved with torch.save. When
    one fails the others are ended.
    """
    # from a process that has only imported: seconds faster than new interpreters
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "inrun.attributor", "inrun.train"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_one, args=(rank, size, folder, function, arguments))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            multiprocessing.connection.wait(
                [process.sentinel for process in processes if process.is_alive()]
            )
            if any(process.exitcode for process in processes if not process.is_alive()):
                for process in processes:
                    process.kill()
                    process.join()
        if codes := [process.exitcode for process in processes if process.exitcode]:
            raise Died(f"exit codes {codes}")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(size)]


def _one(rank: int, size: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
    )
    try:
        torch.save(function(rank, *arguments), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()
