"""The command behind `python -m inrun.data`: a config file, changes on the command line,
progress, a summary.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from inrun.config import build, fields_help
from inrun.data.account import account
from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.errors import DataError
from inrun.data.prepare import prepare
from inrun.progress import live_line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inrun.data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tokenise and pack a corpus. Settings, from --config and KEY=VALUE:\n\n"
        + "\n".join(f"  {name}: {text}" for name, text in fields_help(DataConfig).items()),
        epilog="example: python -m inrun.data --config configs/data/offline.yaml "
        "block_size=128 tokenizer=gpt2-8k",
    )
    parser.add_argument(
        "--config", type=Path, help="a YAML file with fields of DataConfig (see configs/data)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="where corpora and cache lie (default: data)",
    )
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that replace those of the config file",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Prepare a corpus; its folder is the one line on stdout, everything else goes to stderr."""
    chosen = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        config = build(DataConfig, _settings(chosen.config, chosen.changes), "data")
        with live_line(console, "reading") as report:
            folder = prepare(config, chosen.root, report)
    except (DataError, ValueError, OSError) as error:
        console.print(
            f"{type(error).__name__}: {error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        console.print(
            "interrupted: the same command goes on from the last finished shard", highlight=False
        )
        raise SystemExit(130) from None
    console.print(_summary(Corpus.open(folder).manifest))
    sys.stdout.write(f"{folder}\n")


def _settings(config: Path | None, changes: list[str]) -> dict[str, Any]:
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config else {}
    # what follows from a model in a run's config ("${...}") has no model here: the default
    settings = {key: value for key, value in settings.items() if not str(value).startswith("${")}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is not of the form KEY=VALUE, for example block_size=128")
        settings[key] = yaml.safe_load(value)
    return settings


def _summary(manifest: dict[str, Any]) -> Table:
    table = Table(
        title=f"{manifest['name']}: chunks of {manifest['block_size']} tokens, "
        f"{manifest['tokenizer']['name']}"
    )
    table.add_column("domain")
    for column in ("train clean", "train noise", "val", "test"):
        table.add_column(column, justify="right")
    by_split = {split: about["by_domain_and_kind"] for split, about in manifest["splits"].items()}
    rows = []
    for domain in sorted({domain for counts in by_split.values() for domain in counts}):
        kinds = by_split["train"].get(domain, {})
        clean = kinds.get("clean", 0)
        others = [sum(by_split[split].get(domain, {}).values()) for split in ("val", "test")]
        rows.append((domain, clean, sum(kinds.values()) - clean, *others))
    for row in [*rows, ("all", *(sum(column) for column in list(zip(*rows))[1:]))]:
        table.add_row(row[0], *(f"{number:,}" for number in row[1:]))
    table.caption = f"{account(manifest)}; {manifest['counts']['tokens']:,} tokens"
    return table


if __name__ == "__main__":
    main()
