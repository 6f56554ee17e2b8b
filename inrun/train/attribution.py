"""The Attributor of a run, from its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from inrun.attributor import Attributor, Processes
from inrun.config import ConfigError
from inrun.data.corpus import Corpus
from inrun.methods import Method
from inrun.models import LanguageModel
from inrun.train.targets import TargetConfig, Targets


@dataclass(frozen=True)
class AttributionConfig:
    """What is valued, how, towards which targets. No methods: no values, a plain training run.

    methods: see `inrun.methods.Method`. target_micro_batch: chunks of a target that go through the
    model at once, 0 for all; what is left out of memory is computed twice. The others are those of
    `inrun.attributor.Attributor`.
    """

    methods: tuple[Method, ...] = ()
    targets: tuple[TargetConfig, ...] = (TargetConfig("val"),)
    target_micro_batch: int = 0
    route: str = "rules"
    fused: bool = False
    replay: bool = False
    memory_budget: int | None = None
    params: str | None = None
    every: int = 1
    refresh: int = 1
    per_token: bool = False
    ledger: int = 1
    check: int = 1
    flush_every: int = 200

    def __post_init__(self):
        names = [target.name for target in self.targets]
        if self.methods and (not names or len(set(names)) < len(names)):
            raise ConfigError(f"attribution.targets need one or more distinct names, got {names}")
        if self.target_micro_batch < 0 or any(target.chunks < 1 for target in self.targets):
            raise ConfigError(
                "attribution: target_micro_batch must be 0 or more, chunks of a target 1 or more"
            )

    @property
    def on(self) -> bool:
        return bool(self.methods)

    @property
    def runs_again(self) -> bool:
        """Whether the Attributor evaluates a micro-batch a second time."""
        return self.per_token or self.replay or self.route == "forward"


def sample_table(corpus: Corpus) -> pa.Table:
    """What is known of the train chunks, for the store: the chunk table, its chunk_id under the
    name sample_id.
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
    resume: Mapping | None,
    processes: Processes,
) -> Attributor:
    """The Attributor of a run whose values go to `store`; `resume` is what its `state_dict` gave at
    the checkpoint.
    """
    return Attributor(
        model,
        optimizer,
        targets.closures,
        list(config.methods),
        route=config.route,
        fused=config.fused,
        replay=config.replay,
        memory_budget=config.memory_budget,
        store=store,
        params=config.params,
        every=config.every,
        refresh=config.refresh,
        per_token=config.per_token,
        ledger=config.ledger,
        check=config.check,
        samples=sample_table(corpus),
        run=run,
        resume=resume,
        flush_every=config.flush_every,
        group=processes.group,
        share_targets=targets.shared,
    )
