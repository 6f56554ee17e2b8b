"""A training process that may be killed: what it says goes to a file."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import torch

from experiments.frame import reported
from inrun.train import Run, RunConfig, RunFolder


def train(values: dict[str, Any], told: Path, largest_file: int = 0) -> None:
    """Start the run of these settings, or go on with it; ends as the command does.

    largest_file: bytes that a file may have, which stands for a full disk; 0: any.
    """
    with told.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with reported():
        config = RunConfig.from_mapping(values)
        files = RunFolder.of(config)
        run = Run.resume(files.path) if files.is_run else Run.start(config)
        store = run.train()
        if store is not None:
            store.close()
