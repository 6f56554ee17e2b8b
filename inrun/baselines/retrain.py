"""One training after the other, and what each model does on all samples."""

import time
from typing import TypeAlias

import numpy as np
import torch

from inrun.baselines.batches import forward
from inrun.baselines.outcomes import SAMPLES, Outcomes
from inrun.baselines.runs import Classified, RetrainableRun, TrainedRun

AT_ONCE = 1024  # samples per forward
#: SAMPLES or target -> one number for each of its samples
Judged: TypeAlias = dict[str, np.ndarray]


def train_one_by_one(run: RetrainableRun, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
    """`run.retrain` for each request, and what its model does on all of the run's samples and
    targets.
    """
    ids = np.asarray(run.sample_ids)
    found: list[tuple[Judged, Judged, Judged]] = []
    seconds = []
    for row, seed in zip(members, seeds):
        began = time.process_time()
        model = run.retrain(ids[row].tolist(), int(seed)).model()
        with torch.no_grad():
            found.append(_judged(run, model, ids))
        seconds.append(time.process_time() - began)
    losses, margins, correct = (
        {key: np.stack([row[key] for row in kind]) for key in kind[0]} for kind in zip(*found)
    )
    return Outcomes(members, seeds, losses, margins, correct, np.array(seconds))


def _judged(
    run: TrainedRun, model: torch.nn.Module, ids: np.ndarray
) -> tuple[Judged, Judged, Judged]:
    """Losses, margins, and whether the label has the largest logit, of one model."""
    losses = {SAMPLES: forward(lambda part: run.losses(model, part), ids, AT_ONCE)}
    losses |= {target: run.target_losses(model, target) for target in run.targets}
    in_numpy = {key: x.cpu().numpy().astype(np.float32) for key, x in losses.items()}
    if not isinstance(run, Classified):
        return in_numpy, {}, {}
    logits = {
        SAMPLES: (forward(lambda part: run.logits(model, part), ids, AT_ONCE), run.labels(ids))
    }
    logits |= {t: (run.target_logits(model, t), run.target_labels(t)) for t in run.targets}
    judged = {key: margins_and_correct(z.cpu(), y.cpu()) for key, (z, y) in logits.items()}
    margins, correct = ({key: pair[k].numpy() for key, pair in judged.items()} for k in (0, 1))
    return in_numpy, margins, correct


def margins_and_correct(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p / (1 - p) of the label, float32, and whether it has the largest logit; logits [...,
    classes], labels [...].
    """
    at = labels[..., None]
    others = logits.scatter(-1, at, -torch.inf).logsumexp(-1)
    return (logits.gather(-1, at)[..., 0] - others).float(), logits.argmax(-1) == labels
