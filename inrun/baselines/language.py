"""A finished language-model run as the baselines see it: its folder is opened for reading, nothing
is trained.

Samples are the chunks that the run drew, targets are those of its values. A sample's loss is the
sum of its token losses over block_size: proportional to its share in a training step, which divides
the sum over the batch by the number of targets.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from inrun import models
from inrun.baselines.runs import AdamMoments, Checkpoint
from inrun.data.batch import Batch, batch_of, slices
from inrun.data.corpus import Corpus
from inrun.data.sampler import Sampler
from inrun.models import IGNORED_TARGET, LanguageModel
from inrun.train import RunFolder, RunFolderError, TargetConfig
from inrun.train.checkpoint import load_model, step_of
from inrun.train.optim import lr_at
from inrun.train.targets import target_batch

#: chunks that go through the model at once where no gradient is asked for
FORWARD_CHUNKS = 16
#: torch's default, with which `inrun.train.optim` builds AdamW
ADAM_EPS = 1e-8


class LanguageRun:
    """The run in `folder`, with Textual, Featured, Valued and Adaptive capabilities, and labels
    drawn from the model for a Fisher matrix.

    Args:
        folder: what `inrun.train.Run` left.
        corpus: the prepared corpus, where it has moved since; by default where run.json says.
        targets: validation losses beside those of the run's values, for instance documents of your
            own (`TargetConfig.path`).
        device: where models are put.

    Raises RunFolderError: no run, no checkpoint, or another corpus than the run's.
    """

    def __init__(
        self,
        folder: str | Path,
        corpus: str | Path | None = None,
        targets: Sequence[TargetConfig] = (),
        device: str | torch.device = "cpu",
    ):
        self.files, self.device = RunFolder.open(folder), torch.device(device)
        self.folder = self.files.path
        record = self.files.record()
        self.config = record.config
        self._corpus_folder = Path(corpus or self.files.corpus_folder())
        self.corpus = Corpus.open(self._corpus_folder, "train")
        if not self.corpus.has_digest(record.corpus_digest):
            raise RunFolderError(
                f"{self._corpus_folder} is not the corpus of {folder}. Next: give that corpus"
            )
        self._checkpoints = self.files.checkpoints()
        if not self._checkpoints:
            raise RunFolderError(f"{folder} has no checkpoint yet. Next: let it train")
        of_values = self.config.attribution.targets if self.config.attribution.on else ()
        self._targets = {target.name: target for target in (*of_values, *targets)}
        self._batches: dict[str, Batch] = {}

    # -- TrainedRun

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """int64 [n]: the chunks drawn up to the last checkpoint, ascending."""
        if self.config.online.start:
            raise RunFolderError(
                f"{self.folder} chose its chunks by values on the way (online); score a run "
                "without that"
            )
        chunks = self.files.chunks(self.corpus)
        sampler = Sampler(
            chunks.ids, self.config.train.batch_size, self.config.seed, chunks.weights
        )
        return np.unique(
            np.concatenate([sampler.batch_at(step) for step in range(self.checkpoints[-1].step)])
        )

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self._targets)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        steps = [step_of(path) for path in self._checkpoints]
        return tuple(
            Checkpoint(step, lr_at(step - 1, self.config.train.steps, self.config.optim))
            for step in steps
        )

    def model(self, checkpoint: int = -1) -> LanguageModel:
        model = models.build_from(self.config.model_config())
        path = self._checkpoints[checkpoint] / "model.safetensors"
        load_model(model, load_file(path), path)
        return model.to(self.device).eval()

    def losses(self, model: LanguageModel, ids: Sequence[int]) -> Tensor:
        return self._each(
            self._batch(ids), lambda part: part.losses(model) / self.corpus.block_size
        )

    def target_losses(self, model: LanguageModel, target: str) -> Tensor:
        """[m]: mean token loss of each chunk of the target."""

        def means(part: Batch) -> Tensor:
            return part.losses(model) / (part.targets != IGNORED_TARGET).sum(1)

        return self._each(self._target(target), means)

    # -- what only some runs have

    def sampled_losses(self, model: LanguageModel, ids: Sequence[int], seed: int) -> Tensor:
        """`losses`, every next token drawn from the model's own prediction instead of read from the
        text.
        """
        batch = self._batch(ids)
        logits = model(batch.tokens, batch.document_ids).flatten(0, 1)
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
        drawn = drawn.masked_fill(batch.targets.flatten() == IGNORED_TARGET, IGNORED_TARGET)
        losses = F.cross_entropy(logits, drawn, ignore_index=IGNORED_TARGET, reduction="none")
        return losses.view_as(batch.targets).sum(1) / self.corpus.block_size

    def texts(self, ids: Sequence[int]) -> list[str]:
        return [self._plain(self.corpus.text(int(i))) for i in ids]

    def target_texts(self, target: str) -> list[str]:
        batch = self._target(target)
        rows = []
        for tokens, targets in zip(batch.tokens, batch.targets):
            last = int((targets != IGNORED_TARGET).nonzero()[-1])
            rows.append(
                self._plain(
                    self.corpus.tokenizer.decode([*tokens[: last + 1].tolist(), int(targets[last])])
                )
            )
        return rows

    def features(self, model: LanguageModel, ids: Sequence[int]) -> Tensor:
        """[len(ids), d]: mean over a chunk's tokens of what enters the head."""
        return self._each(self._batch(ids), lambda part: _mean_hidden(model, part))

    def target_features(self, model: LanguageModel, target: str) -> Tensor:
        return self._each(self._target(target), lambda part: _mean_hidden(model, part))

    def values(self, method: str, target: str) -> pa.Table:
        with self.files.values() as store:
            return store.values(target, method).select(["sample_id", "value"])

    def moments(self, checkpoint: int = -1) -> AdamMoments:
        if self.config.optim.name != "adamw":
            raise RunFolderError(
                f"{self.folder} was trained with {self.config.optim.name}, which has no Adam "
                "moments"
            )
        state = load_file(self._checkpoints[checkpoint] / "optimizer.safetensors")
        first, second = (
            {
                name.partition("/")[2]: t.to(self.device)
                for name, t in state.items()
                if name.startswith(key + "/")
            }
            for key in ("exp_avg", "exp_avg_sq")
        )
        return AdamMoments(first, second, self.config.optim.betas, ADAM_EPS)

    # -- texts and batches

    def _plain(self, text: str) -> str:
        """Without the mark between documents, which is no word."""
        return text.replace(self.corpus.tokenizer.decode([self.corpus.tokenizer.eot]), "\n\n")

    def _batch(self, ids: Sequence[int]) -> Batch:
        return batch_of(self.corpus, np.asarray(ids), self.config.train.separate_documents).to(
            self.device
        )

    def _target(self, name: str) -> Batch:
        if name not in self._batches:
            config = self.config
            how = (config.seed, config.train.separate_documents, config.data.columns)
            batch = target_batch(self._corpus_folder, self._targets[name], *how)
            self._batches[name] = batch.to(self.device)
        return self._batches[name]

    @staticmethod
    def _each(batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """In parts where nothing has to be kept for a backward: whole logits are large."""
        if torch.is_grad_enabled():
            return compute(batch)
        return torch.cat([compute(batch[rows]) for rows in slices(len(batch), FORWARD_CHUNKS)])


def _mean_hidden(model: LanguageModel, batch: Batch) -> Tensor:
    """Mean over the positions that predict something: [n, d]."""
    read = (batch.targets != IGNORED_TARGET).to(torch.float32)[..., None]
    return (model.features(batch.tokens, batch.document_ids) * read).sum(1) / read.sum(1)
