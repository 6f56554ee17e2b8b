"""What run.json says: the config that a run began with, and the digests of what it reads."""

import copy
import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrun.train.config import RunConfig

FORMAT = 1

#: of a config: where things lie, how long, how often and where it runs, which may change while a
#: run is stopped (the lists of chunks and of documents are compared by their content)
MAY_CHANGE = (
    ("name",),
    ("runs",),
    ("data_root",),
    ("log",),
    ("data", "name"),
    ("data", "path"),
    ("data", "threads"),
    ("train", "steps"),
    ("train", "eval_every"),
    ("train", "checkpoint_every"),
    ("train", "keep"),
    ("train", "verify"),
    ("train", "device"),
    ("train", "timeout"),
    ("train", "chunks"),
)


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json: what a run began with."""

    config: RunConfig
    """Resolved."""
    corpus: str
    """Folder of the prepared corpus, from the root of the file system."""
    corpus_digest: str
    """Of all its splits; in runs of before, of its train split."""
    targets: dict[str, str]
    """Target -> digest of what its loss is taken on."""
    evaluation: str | None
    """Digest of the evaluation chunks; None: a run of before it was noted."""
    chunks: dict[str, Any]
    """count and digest of the chunks that are sampled from."""
    parameters: int
    """Numbers that are trained."""
    precision: dict[str, str]
    """device, autocast."""
    git_revision: str | None = None
    """Of this package, None where it is in no working tree."""

    def to_json(self) -> dict[str, Any]:
        """As in the file: JSON values only."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.loads(
            json.dumps({"format": FORMAT, **values, "config": self.config.to_mapping()})
        )

    @property
    def for_store(self) -> dict[str, Any]:
        """What the value store says of the run."""
        about = self.to_json()
        return {key: about[key] for key in ("config", "corpus_digest", "git_revision")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunRecord":
        """The record in a file's content. Raises KeyError or ValueError if it is none."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        names = {field.name for field in dataclasses.fields(cls)}
        names -= {"config", "targets", "evaluation"}
        return cls(
            config=RunConfig.from_mapping(values["config"]),
            # before, only targets on documents of one's own were noted
            targets=values.get("targets", values.get("own_targets", {})),
            evaluation=values.get("evaluation"),
            **{name: values[name] for name in names},
        )


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of what a checkpoint depends on, of a config as it stands in run.json.

    As it stands there, not as it is read: a later version, which has more fields, goes on with the
    runs of an earlier one.
    """
    rest = copy.deepcopy(dict(config))
    for *groups, key in MAY_CHANGE:
        part = rest
        for group in groups:
            part = part.get(group, {})
        part.pop(key, None)
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def git_revision() -> str | None:
    """Commit of the working tree that this package is in, None if it is in none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
