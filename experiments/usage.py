"""`python -m experiments NAME --help`: from the study's docstring, its dataclass and its config."""

import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.arguments import CONFIGS, composed, groups
from experiments.frame import RECOMPUTE, Command, Study
from inrun.config import fields_help


def first_line(command: Command) -> str:
    """What `--list` says of a command: the first line of its module's docstring."""
    return command.about.partition("\n")[0]


def usage(command: Command, arguments: Sequence[str] = ()) -> str:
    """The help text; arguments: settings that are shown as chosen."""
    call = f"python -m experiments {command.name}"
    options = f"  -m  a sweep: every KEY=A,B of the line, launcher={{{'|'.join(_launchers())}}}"
    if isinstance(command, Study):
        options += f"\n  {RECOMPUTE}  tables, text and figures from the rows, nothing is measured"
    chosen = groups(command.name)
    scales = chosen.pop(command.name, [])
    lines = [
        *([f"  scale: {', '.join(scales)}"] if scales else []),
        *(f"  {group}: {', '.join(names)}" for group, names in chosen.items()),
    ]
    settings = described(command.settings, composed(command.name, command.spelling(arguments)))
    parts = [f"{call} [KEY=VALUE ...]", command.about, f"Options:\n{options}"]
    parts += ["Groups (GROUP=OPTION):\n" + "\n".join(lines)] if lines else []
    shown = textwrap.indent("\n".join(settings), "  ")
    return "\n\n".join([*parts, f"Settings (KEY=VALUE), as they would be:\n{shown}"])


def described(cls: Any, values: Mapping[str, Any]) -> list[str]:
    """YAML lines of `values`; above a key, as a comment, what the dataclass says of its field."""
    known = dataclasses.is_dataclass(cls)
    said = fields_help(cls) if known else {}
    kinds = typing.get_type_hints(cls) if known else {}
    lines = []
    for key, value in values.items():
        lines += [f"# {part}" for part in textwrap.wrap(said.get(key, ""), 90)]
        if isinstance(value, Mapping) and value:
            inner = described(kinds.get(key), value)
            lines += [f"{key}:", *textwrap.indent("\n".join(inner), "  ").splitlines()]
        else:
            shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
            lines.append(f"{key}: {shown.removesuffix('...').strip()}")
    return lines


def _launchers() -> list[str]:
    return sorted(path.stem for path in Path(CONFIGS, "launcher").glob("*.yaml"))
