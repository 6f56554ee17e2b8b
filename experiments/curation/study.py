"""Drop the chunks that values call harmful, train again, compare test losses.

The paper's section 5.3.1 with the controls that it lacks. For every seed (corpus, initial weights
and order of chunks all follow from it):

    full         trains on everything, with values towards the target; the others are compared to it
    <method>     trains on the chunks whose value by that method is not negative
    high_loss    trains without as many chunks, those of the highest training loss in the same steps
    low_loss     the same with the lowest loss
    influence    without as many chunks, those of the lowest influence on the target at the final
                 weights (EK-FAC)
    random       without as many chunks, chosen by chance
    <method>-50, random-50    without this share of the measured chunks (`shares`), the lowest
                 valued or chosen by chance
    online       one run that stops using chunks with negative values on the way
                 (`inrun.train.online`)
    clean        without the planted noise and the foreign domains: what perfect knowledge of the
                 labels would give

All have the same weights to begin with, the same number of steps and the same settings; test losses
are on clean chunks of the target's domains that neither training nor the target has seen.

  python -m experiments curation                                three seeds of a tiny GPT-2
  python -m experiments curation seeds=[0] controls=[random]    one seed, one control
  python -m experiments curation model=pythia-tiny              another architecture
  python -m experiments curation scale=paper                    GPT-2 124M on the Pile: needs a GPU

A killed study goes on where it was: finished training runs are found again.
"""

from pathlib import Path

from rich.console import Console

from experiments.artifacts import PLACES, Outputs, digest
from experiments.curation.report import report
from experiments.curation.runs import CurationRuns
from experiments.curation.settings import CurationConfig
from experiments.frame import study

#: keys of the config that choose among training runs and change none of them
CHOICES = ("scale", "seeds", "controls", "retrain", "shares", *PLACES)


@study(
    "curation",
    CurationConfig,
    report,
    recorded={"curation": "curation", "curation-kinds": "kinds"},
)
def measure(settings: CurationConfig, out: Outputs, console: Console) -> None:
    """Tables curation (a row per seed and training run), kinds, and the runs' test curves."""
    shared = {key: value for key, value in out.config.items() if key not in CHOICES}
    folder = Path(settings.runs) / "trained" / digest(shared)
    arms = [
        (seed, arm)
        for seed in settings.seeds
        for arm in CurationRuns(settings, folder, seed, console).arms()
    ]
    where = {
        "scale": settings.scale,
        "model": settings.model["name"],
        "target": settings.attribution.targets[0].name,
    }
    out.table("curation", [{**where, **arm.row} for _, arm in arms])
    out.table("kinds", [{**where, **row} for _, arm in arms for row in arm.kinds])
    curves = (
        {"seed": seed, "arm": arm.name, "iteration": int(step), "test_loss": float(loss)}
        for seed, arm in arms
        for step, loss in zip(*arm.curve)
    )
    out.table("curves", list(curves))
