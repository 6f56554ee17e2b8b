"""Many trainings of a small network at once: their weights stacked, one forward and backward over
all of them.

The same recipe as `fit`, step by step: initial weights and orders from the same seeds, batches of
the same samples, Adam (which works element by element, so that one Adam over stacked weights is an
Adam for each). Only the order of floating-point sums differs. What is saved is the overhead of
operations on tiny tensors: two to five times the speed of one after the other on one core, measured
for the networks of `inrun.models.small`.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from inrun.baselines.batches import FORWARD
from inrun.baselines.cost import record_training
from inrun.baselines.outcomes import SAMPLES, Outcomes
from inrun.baselines.retrain import margins_and_correct
from inrun.baselines.supervised.recipe import Data, Recipe, network, sample_losses

STACK = 50  # trainings at once: more is not faster, and takes memory


def train_subsets(data: Data, recipe: Recipe, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
    """The outcomes of training on each row of members (bool [k, n], over the whole training part)
    with its seed.
    """
    record_training(count=len(seeds))
    # per epoch: those that are stacked take steps together
    steps = -(-members.sum(1) // recipe.batch)
    pieces: list[tuple[np.ndarray, Outcomes]] = []
    for count in np.unique(steps):
        alike = np.flatnonzero(steps == count)
        for rows in np.split(alike, range(STACK, len(alike), STACK)):
            pieces.append((rows, _train_stack(data, recipe, members[rows], seeds[rows])))
    order = np.argsort(np.concatenate([rows for rows, _ in pieces]))
    return Outcomes.concatenated([outcomes for _, outcomes in pieces]).take(order)


def _train_stack(data: Data, recipe: Recipe, members: np.ndarray, seeds: np.ndarray) -> Outcomes:
    began = time.process_time()
    models = _networks(data, recipe, seeds)
    weights, buffers = stack_module_state(models)
    base = models[0]

    def outputs(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (weights, buffers), (x,))

    each, shared = vmap(outputs, in_dims=(0, 0, 0)), vmap(outputs, in_dims=(0, 0, None))
    optimizer = torch.optim.Adam(
        weights.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    (x, y), classes = data.train, data.problem.classes
    for epoch, batches in enumerate(_orders(members, seeds, recipe)):
        optimizer.param_groups[0]["lr"] = recipe.lr_of(epoch)
        for rows, weight in batches:
            at = torch.from_numpy(rows).to(data.device)
            share = torch.from_numpy(weight).to(data.device, x.dtype)
            found = each(weights, buffers, x[at])  # [k, batch, classes]
            each_loss = sample_losses(
                found.flatten(0, 1), y[at].flatten(), classes, recipe.label_smoothing
            )
            (each_loss * share.flatten()).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    judged = _judge_all(data, recipe.label_smoothing, lambda x: shared(weights, buffers, x))
    losses, margins, correct = (
        {key: kinds[kind] for key, kinds in judged.items() if len(kinds) > kind}
        for kind in range(3)
    )
    seconds = np.full(len(seeds), (time.process_time() - began) / len(seeds))
    return Outcomes(members, seeds, losses, margins, correct, seconds)


def _networks(data: Data, recipe: Recipe, seeds: np.ndarray) -> list[nn.Module]:
    """A network for each seed, with the initial weights that `fit` gives it."""
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(int(seed))
            models.append(network(recipe.network, data.problem).to(data.device))
    return models


def _orders(members: np.ndarray, seeds: np.ndarray, recipe: Recipe):
    """For each epoch its batches: rows [k, batch], and the weight of each in its batch's mean;
    short batches are filled up with weight 0.
    """
    rows, dice = (
        [np.flatnonzero(row) for row in members],
        [np.random.default_rng([int(seed), 2]) for seed in seeds],
    )
    sizes = members.sum(1)
    for _ in range(recipe.epochs):
        order = np.zeros((len(rows), sizes.max()), dtype=np.int64)
        for k, (die, mine) in enumerate(zip(dice, rows)):
            order[k, : sizes[k]] = die.permutation(mine)
        there = np.arange(sizes.max()) < sizes[:, None]
        cuts = [slice(start, start + recipe.batch) for start in range(0, sizes.max(), recipe.batch)]
        yield [(order[:, cut], there[:, cut] / there[:, cut].sum(1, keepdims=True)) for cut in cuts]


@torch.no_grad()
def _judge_all(
    data: Data, label_smoothing: float, outputs: Callable[[Tensor], Tensor]
) -> dict[str, list[np.ndarray]]:
    """Part of the data -> what `_judge` finds on it; smoothed labels for the training part only."""
    judged = {SAMPLES: _judge(data, label_smoothing, data.train, outputs)}
    for target, part in data.targets.items():
        judged[target] = _judge(data, 0.0, part, outputs)
    return judged


def _judge(
    data: Data,
    label_smoothing: float,
    part: tuple[Tensor, Tensor],
    outputs: Callable[[Tensor], Tensor],
) -> list[np.ndarray]:
    """Losses [k, m], and for a classification margins and whether it is right, of the whole stack
    on a part of the data.
    """
    (x, y), classes = part, data.problem.classes
    found = torch.cat(
        [outputs(x[start : start + FORWARD]) for start in range(0, len(x), FORWARD)], dim=1
    )  # [k, m, classes]
    labels = y.expand(found.shape[:2])
    losses = sample_losses(found.flatten(0, 1), labels.flatten(), classes, label_smoothing).view(
        labels.shape
    )
    kinds = [losses.float(), *(margins_and_correct(found, labels) if classes else ())]
    return [kind.cpu().numpy() for kind in kinds]
