"""Validation targets and the Attributor of a run, from its config.

A target is the mean loss per token over a few validation chunks that are chosen once, by the run's
seed, so that the loss is a function of the weights alone and the ledger telescopes.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inrun.attributor import Attributor, Processes
from inrun.config import ConfigError
from inrun.data.batch import Batch, batch_of, batch_of_texts
from inrun.data.corpus import Corpus
from inrun.data.sampler import Sampler
from inrun.data.sources import read_files
from inrun.evaluate import evaluating
from inrun.methods import Method
from inrun.models import LanguageModel
from inrun.train.precision import Precision


@dataclass(frozen=True)
class TargetConfig:
    """A validation loss: `chunks` chunks of these domains (empty: of all) of a split, or of
    documents of your own.

    path: documents in a file, a folder or a glob, as for data=files; then `split` is not used,
    `chunks` is the most that are taken (the first ones of these domains), and of each document its
    first block_size + 1 tokens.
    """

    name: str
    domains: tuple[str, ...] = ()
    split: str = "val"
    chunks: int = 16
    path: str = ""


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


@dataclass(frozen=True)
class Targets:
    """Name -> closure; shared: each process's closure gives its part of the loss."""

    closures: dict[str, Callable[[], Tensor]]
    shared: bool


def target_ids(corpus: Corpus, config: TargetConfig, seed: int) -> np.ndarray:
    """Ids of the target's chunks in its split, np.int64 [chunks]; ConfigError if there are not as
    many.
    """
    ids = corpus.ids(domain=config.domains or None)
    if len(ids) < config.chunks:
        raise ConfigError(
            f"target {config.name!r} wants {config.chunks} chunks, but the {config.split} "
            f"split has {len(ids)} of "
            f"{list(config.domains) or 'all domains'}; lower chunks, or prepare a larger corpus"
        )
    return Sampler(ids, config.chunks, seed).batch_at(0)


def target_batch(folder: Path, config: TargetConfig, seed: int, separate: bool = False) -> Batch:
    """The samples that the target's loss is taken on; `folder` is that of the prepared corpus."""
    if not config.path:
        corpus = Corpus.open(folder, config.split)
        return batch_of(corpus, target_ids(corpus, config, seed), separate)
    corpus = Corpus.open(folder, "train")
    documents = (
        d
        for d in read_files(config.path)
        if not d.skip and (not config.domains or d.domain in config.domains)
    )
    texts = [document.text for document in itertools.islice(documents, config.chunks)]
    if not texts:
        raise ConfigError(
            f"target {config.name!r}: {config.path} has no document of "
            f"{list(config.domains) or 'any domain'}; name others, or another file"
        )
    return batch_of_texts(corpus, texts)


def target_digest(batch: Batch) -> str:
    """sha256 of the target's tokens: equal digests are equal losses."""
    content = (tensor.numpy().tobytes() for tensor in (batch.tokens, batch.targets))
    return hashlib.sha256(b"".join(content)).hexdigest()


def target_closure(
    model: LanguageModel, batch: Batch, micro_batch: int, precision: Precision, total: int
) -> Callable[[], Tensor]:
    """A closure that gives the loss of `batch` at the model's present weights, in evaluation mode:
    the sum over its tokens by `total` (nats, 0-dim).
    """
    parts = batch.split(micro_batch)

    def part_loss(part: Batch) -> Tensor:
        # here, not around `loss`: a part is computed again in the backward, after `loss` has
        # returned
        with evaluating(model), precision.autocast():
            return part.loss(model) / total

    def loss() -> Tensor:
        if len(parts) == 1:
            return part_loss(parts[0])
        # only one part's activations live at a time: the others are computed again in the backward
        return torch.stack(
            [checkpoint(part_loss, part, use_reentrant=False) for part in parts]
        ).sum()

    return loss


def build_targets(
    model: LanguageModel,
    folder: Path,
    config: AttributionConfig,
    seed: int,
    precision: Precision,
    separate: bool,
    processes: Processes,
) -> Targets:
    """The targets for the corpus in `folder`; dealt out to the processes where there are chunks
    enough for all of them.
    """
    batches = {
        target.name: target_batch(folder, target, seed, separate) for target in config.targets
    }
    shared = not processes.alone and all(len(batch) >= processes.size for batch in batches.values())
    closures = {}
    for name, batch in batches.items():
        rows = slice(processes.rank, None, processes.size) if shared else slice(None)
        own = batch[rows].to(precision.device)
        closures[name] = target_closure(
            model, own, config.target_micro_batch, precision, batch.count()
        )
    return Targets(closures, shared)


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
