"""What an experiment leaves: tables (parquet and markdown), figures (SVG and PNG), rows in the
committed `experiments/results/NAME.csv`.

    out = Outputs.open("runs/curation", config)   # runs/curation/<digest of config>, or name=...
    if not out.finished:                           # the same config opens the same folder again
        out.table("curation", rows)                # curation.parquet, curation.md
        out.figure("curation", figure)             # curation.svg and .png
        out.finish()                               # a repeated command has nothing to do
    out.record("curation", rows)                   # the committed CSV: replaces this config's rows

Every file is written beside its place and renamed, so a kill leaves the former one. Where a resumed
experiment keeps what it has so far is its own affair: `out.folder`.
"""

import csv
import functools
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiments.tables import aligned, markdown, short
from inrun.config import ConfigError
from inrun.files import read_json, write_file, write_json, write_text

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "inrun"

RESULTS = Path(__file__).parent / "results"
#: top-level keys of a config that say where something lies, and change no result
PLACES = ("name", "runs", "data_root", "record")
PROVENANCE = ("config_digest", "revision")


@dataclass(frozen=True)
class Outputs:
    """The folder of an experiment with one config."""

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def open(
        cls, runs: str | Path, config: Mapping[str, Any], name: str | None = None
    ) -> "Outputs":
        """The folder of this config, made if there is none.

        Args:
            runs: where the experiment's folders lie.
            config: plain values (JSON); `PLACES` are left out.
            name: of the folder; by default the digest of the config.

        Raises:
            ConfigError: the folder belongs to another config.
        """
        config = json.loads(
            json.dumps({key: value for key, value in config.items() if key not in PLACES})
        )
        out = cls(place_of(runs, config, name), config)
        about = out.folder / "config.json"
        if about.is_file() and read_json(about) != config:
            raise ConfigError(
                f"{out.folder} holds results of other settings; choose another name=..., or "
                "delete it"
            )
        out.folder.mkdir(parents=True, exist_ok=True)
        write_json(about, config, indent=1)
        revision()  # of the code that is running, whatever is committed meanwhile
        return out

    @property
    def finished(self) -> bool:
        """Whether everything was measured."""
        return (self.folder / "finished").is_file()

    def finish(self) -> None:
        """A repeated command has nothing more to measure."""
        write_text(self.folder / "finished", revision() + "\n")

    def table(self, name: str, rows: Sequence[Mapping] | pa.Table, text: str | None = None) -> None:
        """NAME.parquet, and NAME.md: all rows, or `text` where a reader wants something shorter."""
        found = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(aligned(rows))
        write_file(self.folder / f"{name}.parquet", functools.partial(pq.write_table, found))
        self.text(name, text if text is not None else markdown(found.to_pylist()))

    def text(self, name: str, text: str) -> None:
        """NAME.md, in words."""
        write_text(self.folder / f"{name}.md", text.rstrip("\n") + "\n")

    def rows(self, name: str) -> list[dict]:
        """The rows of a table that was written. Raises ConfigError: there is none."""
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise ConfigError(
                f"{self.folder} has no table {name}: it was measured by an earlier version. Next: "
                "delete its file `finished` and measure again; trained runs are found again"
            )
        return pq.read_table(path).to_pylist()

    def figure(self, name: str, figure: Figure) -> None:
        """NAME.svg and NAME.png; the figure is closed."""
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            save = functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
            write_file(self.folder / f"{name}.{kind}", save)
        plt.close(figure)

    def record(self, name: str, rows: Sequence[Mapping], results: Path | None = None) -> Path:
        """results/NAME.csv with `rows` in the place of those of the same config, and the config in
        results/NAME-configs.json. One process at a time.

        The revision is that of the process that finished. Rows that come with a `revision` or a
        `config_digest` of their own keep it.
        """
        results = results or RESULTS
        path, about = results / f"{name}.csv", results / f"{name}-configs.json"
        obtained = (
            (self.folder / "finished").read_text(encoding="utf-8").strip()
            if self.finished
            else revision()
        )
        own = {"config_digest": digest(self.config), "revision": obtained}
        kept: list[Mapping] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [
                    row
                    for row in csv.DictReader(file)
                    if row["config_digest"] != own["config_digest"]
                ]
        both = aligned([*kept, *({**own, **row} for row in rows)], last=PROVENANCE)
        configs = read_json(about) if about.is_file() else {}
        configs = {**configs, own["config_digest"]: dict(self.config)}
        used = {row["config_digest"] for row in both}
        configs = {key: config for key, config in sorted(configs.items()) if key in used}
        results.mkdir(parents=True, exist_ok=True)
        write_json(about, configs, indent=1)

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(both[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(
                    {key: short(value, 8) for key, value in row.items()} for row in both
                )

        return write_file(path, write)


def place_of(runs: str | Path, config: Mapping[str, Any], name: str | None = None) -> Path:
    """The folder of a study with this config."""
    return Path(runs) / (name or digest(config))


def digest(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of everything in a config but its `PLACES`."""
    about = {key: value for key, value in config.items() if key not in PLACES}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


@functools.cache
def revision() -> str:
    """Commit of the running code at the process's first call, with `-dirty` where tracked files
    other than text and results differ from it; `unknown` outside git.
    """
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=30
        )
        texts = [":(top)", ":(top,exclude)*.md", ":(top,exclude)experiments/results"]
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", *texts], timeout=30
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed else "")
