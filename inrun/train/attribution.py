"""The Attributor of a run, from its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from inrun.attributor import Attributor, Processes, Recording, Valuation
from inrun.config import require
from inrun.data.corpus import Corpus
from inrun.methods import Method
from inrun.models import LanguageModel
from inrun.train.targets import TargetConfig, Targets


@dataclass(frozen=True, kw_only=True)
class AttributionConfig(Valuation):
    """What is valued, how, towards which targets. No method: no values, a plain training run."""

    method: tuple[Method, ...] = ()
    "ways to value samples, by name or with options; none: plain training"
    targets: tuple[TargetConfig, ...] = (TargetConfig("val"),)
    "validation losses that the samples are valued towards"
    target_micro_batch: int = 0
    """chunks of a target that go through the model at once, 0 for all; what is left out of memory
    is computed twice"""
    flush_every: int = 200
    "steps between flushes of the store"

    def __post_init__(self):
        super().__post_init__()
        names = [target.name for target in self.targets]
        require(
            "attribution",
            (
                not self.method or (names and len(set(names)) == len(names)),
                f"targets need one or more distinct names, got {names}",
            ),
            (
                self.target_micro_batch >= 0 and all(target.chunks > 0 for target in self.targets),
                "target_micro_batch must be 0 or more, chunks of a target 1 or more",
            ),
        )

    @property
    def on(self) -> bool:
        return bool(self.method)


def sample_table(corpus: Corpus) -> pa.Table:
    """What is known of the train chunks, for the store.

    The chunk table, its chunk_id under the name sample_id.
    """
    return corpus.chunks.rename_columns({"chunk_id": "sample_id"})


def build_attributor(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    targets: Targets,
    config: AttributionConfig,
    corpus: Corpus,
    store: Path,
    run: Mapping,
    processes: Processes,
) -> Attributor:
    """The Attributor of a run whose values go to `store`."""
    return Attributor(
        model,
        optimizer,
        targets.closures,
        **config.arguments(),
        store=Recording(store, sample_table(corpus), run, config.flush_every),
        processes=Processes(processes.group, targets.shared),
    )
