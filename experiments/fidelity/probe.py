"""One valued step of the fidelity study: the methods' values, their cost, and the truth.

Values and truth are float64: at lr 3e-4 the values of a step are no larger than the rounding of a
float32 loss. Costs are measured in float32, as one trains.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import inrun
from inrun import models, shapley
from inrun.attributor import Attributor, Intervals
from inrun.data.batch import Batch, batch_of
from inrun.data.corpus import Corpus
from inrun.data.sampler import Sampler
from inrun.evaluate import pearson, relative_rmse, spearman
from inrun.evaluate.step_game import StepGame
from inrun.methods import FirstOrder, SecondOrder
from inrun.models import LanguageModel
from inrun.train import OptimConfig, Run, checkpoint
from inrun.train.optim import build_optimizer

COMMON = (
    SecondOrder(),
    inrun.Path(name="path_1"),
    inrun.Path(nodes=3, name="path_3"),
)
CURRENT = FirstOrder(state="current", name="first_order_current")
#: the slope frozen before the step, also where it says of itself that it is off
PREVIOUS = FirstOrder(largest_excess=math.inf, name="first_order_previous")
FORMULAS = (
    FirstOrder(update="sgd", name="sgd_formula"),
    SecondOrder(update="sgd", name="sgd_formula_2nd"),
)
#: step -> methods. sgd: a plain step on the sum of losses, for which the optimizer's own slope is
#: the paper's formula. The others: the step that the training would take; momentum: of SGD
PROBES = {
    "sgd": (FirstOrder(), *COMMON),
    "adamw": (*FORMULAS, PREVIOUS, CURRENT, *COMMON),
    "lion": (*FORMULAS, CURRENT, *COMMON),
    "momentum": (*FORMULAS, FirstOrder(), *COMMON),
}
#: who predicts the utility U(S) of a coalition as the sum of its members' values
ADDITIVE = {
    "sgd": ("first_order", "path_1"),
    "adamw": ("sgd_formula", "first_order_current", "path_1"),
    "lion": ("sgd_formula", "first_order_current", "path_1"),
    "momentum": ("sgd_formula", "first_order", "path_1"),
}
COST_REPEATS = 6


@dataclass(frozen=True)
class ValuedStep:
    """A training run at one of its checkpoints, with the batch to value and the target, chosen by
    the seed.

    players: samples of the batch. permutations: most orders of the sampled truth, 0 to enumerate.
    block: tokens of a sample. val_chunks: samples of the target.
    """

    run: Run
    step: int
    seed: int
    players: int
    permutations: int
    block: int
    val_chunks: int

    def probe(self, optimizer: str, lr: float, dtype: torch.dtype) -> "Probe":
        """A fresh model and optimizer at the checkpoint, the training's optimizer with its state,
        plain SGD without momentum. At step 0 the model is as the run initialised it.
        """
        config = self.run.config
        device = self.run.precision.device
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = models.build_from(config.model_config()).to(device, dtype)
        trained = build_optimizer(model, config.optim)
        if self.step:
            checkpoint.load(self.run.files.checkpoint(self.step), model, trained)
        for group in trained.param_groups:
            group["lr"] = lr
        batch = self._batch(self.run.corpus, self.players, self.step).to(device)
        held_out = self._batch(Corpus.open(self.run.corpus.folder, "val"), self.val_chunks, 0).to(
            device
        )
        target = lambda m: held_out.losses(m).sum() / held_out.count()  # noqa: E731
        if optimizer == "sgd":
            plain = build_optimizer(model, OptimConfig("sgd", lr=lr, min_lr=lr, weight_decay=0.0))
            # the paper's step: the sum over samples of their mean loss per token
            return Probe(model, plain, lambda m: batch.losses(m) / self.block, target, None)
        # the step of the training run: the mean over all tokens of the batch, clipped
        return Probe(
            model,
            trained,
            lambda m: batch.losses(m) / batch.count(),
            target,
            config.optim.clip or None,
        )

    def _batch(self, corpus: Corpus, size: int, step: int) -> Batch:
        whole = batch_of(corpus, Sampler(len(corpus), size, self.seed + 1000).batch_at(step))
        return Batch(whole.tokens[:, : self.block], whole.targets[:, : self.block])


@dataclass(frozen=True)
class Probe:
    """A model and an optimizer before the valued step, the samples' shares of its loss, the target,
    the largest norm.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    shares: Callable[[nn.Module], Tensor]
    target: Callable[[nn.Module], Tensor]
    clip: float | None

    def attributor(self, methods: Sequence[inrun.methods.Method]) -> Attributor:
        return Attributor(
            self.model,
            self.optimizer,
            {"val": lambda: self.target(self.model)},
            methods,
            intervals=Intervals(ledger=0),
        )

    def backward(self) -> None:
        self.shares(self.model).sum().backward()

    def update(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def own_step(optim: OptimConfig) -> str:
    """What the training's own step is called among PROBES."""
    return "momentum" if optim.name == "sgd" else optim.name


def compare(
    study: ValuedStep,
    optimizer: str,
    lr: float,
    seconds: dict[str, float],
    report: Callable[[int], None],
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of figures, one per method and quantity (values, utility); a point per sample and
    method: value beside truth; a point per coalition: U beside its predictions.

    seconds: what `costs` gave. report: hears the number of coalitions evaluated so far.
    """
    values, interactions, excess = _values(study, optimizer, lr)
    seen: dict[bytes, float] = {}
    probe = study.probe(optimizer, lr, torch.float64)
    game = StepGame(probe.model, probe.optimizer, probe.shares, probe.target, clip=probe.clip)

    def utility(mask: np.ndarray) -> float:
        seen[mask.tobytes()] = game.utility(mask)
        report(len(seen))
        return seen[mask.tobytes()]

    errors = np.zeros(game.n)
    if study.permutations:
        estimate = shapley.permutation(
            utility, game.n, tolerance=0.0, max_permutations=study.permutations, seed=study.seed
        )
        truth, errors = estimate.values, estimate.standard_errors
    else:
        truth = shapley.exact(utility, game.n)
    everybody = game.utility(np.ones(game.n, dtype=bool))
    about = {
        "truth_spread": truth.std(),
        "largest_standard_error": errors.max(),
        "utility_of_all": everybody,
        "parameters": probe.model.num_parameters(),
        "drift": game.drift,
        "coalitions": len(seen),
    }
    rows = []
    for name, found in values.items():
        gap = {"sum_gap": found.sum() / everybody - 1, "cost_ratio": seconds[name]}
        gap["excess"] = excess.get(name)
        rows.append(
            {"quantity": "values", "method": name, **_agreement(found, truth), **gap, **about}
        )
    masks = np.array([np.frombuffer(key, dtype=bool) for key in seen], dtype=np.float64)
    actual = np.array(list(seen.values()))
    predicted = {name: masks @ values[name] for name in ADDITIVE[optimizer]}
    # U(S) = sum_i a_i + 1/2 sum_ij I_ij over S: a is what the second-order values are before they
    # share the interactions
    single = values["second_order"] - 0.5 * interactions.sum(1)
    predicted["second_order"] = masks @ single + 0.5 * np.einsum(
        "si,ij,sj->s", masks, interactions, masks
    )
    for name, found in predicted.items():
        rows.append({"quantity": "utility", "method": name, **_agreement(found, actual), **about})
    points = [
        {
            "method": name,
            "player": i,
            "value": found[i],
            "truth": truth[i],
            "standard_error": errors[i],
        }
        for name, found in values.items()
        for i in range(game.n)
    ]
    coalitions = [
        {"coalition": "".join(str(int(member)) for member in mask), "utility": actual[k]}
        | {name: found[k] for name, found in predicted.items()}
        for k, mask in enumerate(masks)
    ]
    return rows, points, coalitions


def costs(study: ValuedStep, optimizer: str) -> dict[str, float]:
    """method -> time of a valued step over time of the plain step, float32: medians of interleaved
    repeats. CPU time, so that a busy machine tells the same.
    """
    methods = PROBES[optimizer]
    taken: dict[str, list[float]] = {name: [] for name in ("plain", *(m.name for m in methods))}
    probe = study.probe(optimizer, 1e-9, torch.float32)  # weights stay where they are
    ids = np.arange(study.players)

    def clock() -> float:
        if study.run.precision.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(COST_REPEATS):
        began = clock()
        probe.backward()
        probe.update()
        taken["plain"].append(clock() - began)
        for method in methods:
            with probe.attributor([method]) as attributor:
                began = clock()
                with attributor.batch(ids):
                    probe.backward()
                probe.update()
                taken[method.name].append(clock() - began)
    # the first round warms up
    plain = float(np.median(taken["plain"][1:]))
    return {name: float(np.median(times[1:])) / plain for name, times in taken.items()}


def _values(
    study: ValuedStep, optimizer: str, lr: float
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """method -> values [n], the pairwise interactions [n, n] of the optimizer's own step, and what
    methods say of their frozen slope.
    """
    methods = sorted(
        PROBES[optimizer], key=lambda m: m.update == "sgd"
    )  # interactions are those of the first one's rule
    probe = study.probe(optimizer, lr, torch.float64)
    with probe.attributor(methods) as attributor:
        with attributor.batch(np.arange(study.players)):
            probe.backward()
        if probe.clip is not None:
            nn.utils.clip_grad_norm_(probe.model.parameters(), probe.clip)
        interactions = attributor.interactions().cpu().numpy()
        probe.optimizer.step()
    result = attributor.last_step
    found = {name: values.cpu().numpy() for (name, _), values in result.values.items()}
    return {m.name: found[m.name] for m in PROBES[optimizer]}, interactions, result.excess


def _agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors and correlations; values that are all equal order nothing, their correlation is 0."""
    told = bool(np.ptp(found))
    return {
        "rmse": float(np.sqrt(np.mean((found - truth) ** 2))),
        "relative_rmse": relative_rmse(found, truth),
        "pearson": pearson(found, truth) if told else 0.0,
        "spearman": spearman(found, truth) if told else 0.0,
    }
