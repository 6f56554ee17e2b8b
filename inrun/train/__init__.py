"""Training a language model with values: config, loop, checkpoints, log.

`Run.start(RunConfig(...)).train()` makes one run; `Run.resume(folder).train()` goes on with it.
Everything that a run leaves is in its folder, and `RunFolder` knows what is there.
"""

from inrun.config import ConfigError
from inrun.train.attribution import AttributionConfig
from inrun.train.checkpoint import CheckpointError
from inrun.train.config import RunConfig, TrainConfig
from inrun.train.endings import StorageError
from inrun.train.folder import RunFolder, RunFolderError, mean_chunk_losses
from inrun.train.log import LogConfig
from inrun.train.loop import Run
from inrun.train.non_finite import NonFiniteLossError
from inrun.train.online import OnlineConfig
from inrun.train.optim import OptimConfig
from inrun.train.record import RunRecord
from inrun.train.reuse import train_or_reuse
from inrun.train.selection import ChunkSelection, read_chunks, write_chunks
from inrun.train.signals import Interrupted
from inrun.train.targets import TargetConfig

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
    "RunFolder",
    "RunFolderError",
    "RunRecord",
    "StorageError",
    "TargetConfig",
    "TrainConfig",
    "mean_chunk_losses",
    "read_chunks",
    "train_or_reuse",
    "write_chunks",
]
