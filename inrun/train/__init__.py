"""Training a language model with values: config, loop, checkpoints, log, report.

`Run.start(RunConfig(...)).train()` makes one run; `Run.resume(folder).train()` goes on with it.
Everything that a run leaves is in its folder: `run.json` (resolved config, corpus), `log.jsonl`,
`checkpoints/`, `values/` (the value store).
"""

from inrun.config import ConfigError
from inrun.train.attribution import AttributionConfig, TargetConfig
from inrun.train.checkpoint import CheckpointError
from inrun.train.config import RunConfig, TrainConfig
from inrun.train.log import LogConfig, mean_chunk_losses
from inrun.train.loop import NonFiniteLossError, Run, RunFolderError
from inrun.train.online import OnlineConfig
from inrun.train.optim import OptimConfig
from inrun.train.reuse import train_or_reuse
from inrun.train.selection import ChunkSelection, read_chunks, write_chunks
from inrun.train.signals import Interrupted

__all__ = [
    "AttributionConfig",
    "CheckpointError",
    "ChunkSelection",
    "ConfigError",
    "Interrupted",
    "LogConfig",
    "NonFiniteLossError",
    "OnlineConfig",
    "OptimConfig",
    "Run",
    "RunConfig",
    "RunFolderError",
    "TargetConfig",
    "TrainConfig",
    "mean_chunk_losses",
    "read_chunks",
    "train_or_reuse",
    "write_chunks",
]
