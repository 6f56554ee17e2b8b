"""What a run reads, opened and checked before its folder is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from inrun.attributor import Processes
from inrun.data.account import account
from inrun.data.batch import Batch
from inrun.data.config import SPLITS
from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from inrun.progress import live_line
from inrun.train.config import RunConfig
from inrun.train.evaluation import EvaluationSet
from inrun.train.folder import RunFolder, RunFolderError
from inrun.train.precision import Precision
from inrun.train.record import RunRecord, git_revision
from inrun.train.selection import ChunkSelection, read_chunks
from inrun.train.targets import target_batch, target_digest


@dataclass(frozen=True)
class RunInputs:
    """The data of a run."""

    corpus: Corpus
    """Its train split."""
    evaluation: EvaluationSet
    """Held-out chunks."""
    targets: dict[str, Batch]
    """Target -> what its loss is taken on; empty without attribution."""
    digests: dict[str, str]
    """Target -> digest of what its loss is taken on."""
    chunks: ChunkSelection
    """What is sampled of the corpus."""

    @classmethod
    def open(
        cls, config: RunConfig, record: RunRecord | None, folder: RunFolder, corpus_folder: Path
    ) -> "RunInputs":
        """The inputs in `corpus_folder`; with `record` those of a run that is resumed.

        Raises RunFolderError if the run began with others, ConfigError, and the errors of Corpus.
        """
        corpus = Corpus.open(corpus_folder, "train", verify=config.train.verify)
        corpus.check(n_vocab=config.model_config().vocab_size)
        if record is not None:
            _refuse_another_corpus(corpus, record, folder)
        evaluation = EvaluationSet.choose(corpus_folder, config.train, config.seed)
        wanted = config.attribution.targets if config.attribution.on else ()
        how = (config.seed, config.train.separate_documents, config.data.columns)
        targets = {target.name: target_batch(corpus_folder, target, *how) for target in wanted}
        digests = {name: target_digest(batch) for name, batch in targets.items()}
        if record is not None:
            _refuse_other_losses(record, folder, digests, evaluation.digest)
        chunks = folder.chunks(corpus) if record else _chunks(config, corpus)
        return cls(corpus, evaluation, targets, digests, chunks)

    def record(self, config: RunConfig, parameters: int, precision: Precision) -> RunRecord:
        """What run.json says of a new run on these inputs."""
        return RunRecord(
            config=config,
            corpus=str(self.corpus.folder.resolve()),
            corpus_digest=self.corpus.whole_digest,
            targets=self.digests,
            evaluation=self.evaluation.digest,
            chunks={"count": len(self.chunks.ids), "digest": self.chunks.digest},
            parameters=parameters,
            precision=precision.about,
            git_revision=git_revision(),
        )


def prepared(
    config: RunConfig, processes: Processes, console: Console, resumed: RunFolder | None
) -> Path:
    """The folder of the run's corpus, prepared if need be by one process after the other.

    resumed: of a run that is gone on with. It owns its corpus: that folder is taken, wherever this
    process was started and whatever has become of the texts it was made of, and the hashes of its
    files are checked. Only where it is gone the texts are asked for. Raises ShardDamaged.
    """
    folder = resumed.corpus_folder() if resumed else None
    if folder is None or not folder.is_dir():
        with live_line(console, "reading") as report:
            folder = processes.one_by_one(lambda: prepare(config.data, config.data_root, report))
    chosen = folder
    if resumed:
        processes.first(lambda: [Corpus.open(chosen, split, verify="hash") for split in SPLITS])
    if processes.leads:
        line = account(Corpus.open(folder).manifest)
        console.print(f"corpus: {line}", markup=False, highlight=False, soft_wrap=True)
    return folder


def _refuse_another_corpus(corpus: Corpus, record: RunRecord, folder: RunFolder) -> None:
    if not corpus.has_digest(record.corpus_digest):
        raise RunFolderError(
            f"{folder.path} began with another corpus (digest {record.corpus_digest[:12]}, now "
            f"{corpus.whole_digest[:12]} in {corpus.folder}). Next: restore that corpus, or start "
            "a new run with another name"
        )


def _refuse_other_losses(
    record: RunRecord, folder: RunFolder, digests: Mapping[str, str], evaluation: str
) -> None:
    """Values towards two targets, or losses on two sets, would stand in one table."""
    known = digests.keys() & record.targets.keys()
    others = sorted(name for name in known if digests[name] != record.targets[name])
    if others:
        raise RunFolderError(
            f"{folder.path} began with other documents behind the targets {', '.join(others)}. "
            "Next: restore the files or the corpus, or start a new run with another name"
        )
    if record.evaluation not in (None, evaluation):
        raise RunFolderError(
            f"{folder.path} began with other chunks to evaluate on. Next: restore the corpus, or "
            "start a new run with another name"
        )


def _chunks(config: RunConfig, corpus: Corpus) -> ChunkSelection:
    """Of a new run: all of the train split, or what a file says."""
    if not config.train.chunks:
        return ChunkSelection(np.arange(len(corpus), dtype=np.int64))
    return read_chunks(config.train.chunks, corpus)
