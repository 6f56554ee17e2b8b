"""What is installed: two packages, beside Hugging Face's `kernels` in any order."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = {"inrun": ROOT / "inrun", "inrun_kernels": ROOT / "kernels" / "inrun_kernels"}
# `packages.find` looks through all of these: what it must leave out has to be there
TOP = ["inrun", "kernels", "experiments", "notebooks", "tests", "configs", "docs"]
BUILD = """
import tarfile
from setuptools import build_meta
archive = build_meta.build_sdist("../built")
tarfile.open("../built/" + archive).extractall("../unpacked", filter="data")
"""
WHEEL = 'from setuptools import build_meta; build_meta.build_wheel("../../built")'
OURS = "assert inrun_kernels.wgrad_dots and inrun.__doc__; print(inrun_kernels.__file__)"
THEIRS = "assert kernels.get_kernel and kernels.__version__; print(kernels.__file__)"


def call(command: list, cwd: Path) -> subprocess.CompletedProcess:
    """Run without this process's import path."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(x) for x in command], cwd=cwd, capture_output=True, text=True, env=variables
    )


def run(command: list, cwd: Path) -> str:
    result = call(command, cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_of_packages() -> set[str]:
    """Files of both packages as a wheel names them."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the project to build in: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("packaging") / "project"
    for name in TOP:
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source) -> Path:
    """A folder with the source archive, and the wheel that was built from the archive."""
    folder = source.parent / "built"
    folder.mkdir()
    run([sys.executable, "-c", BUILD], source)
    (unpacked,) = (source.parent / "unpacked").iterdir()
    run([sys.executable, "-c", WHEEL], unpacked)
    return folder


@pytest.fixture(scope="module")
def kernels_wheel(tmp_path_factory) -> Path:
    """Hugging Face's distribution `kernels`, from the package index."""
    folder = tmp_path_factory.mktemp("index")
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "kernels"]
    result = call(command, folder)
    if result.returncode:
        unreachable = "connection" in result.stderr.lower() or "timed out" in result.stderr.lower()
        assert unreachable, result.stderr
        pytest.skip("the package index cannot be reached, so that `kernels` cannot be installed")
    return next(folder.iterdir())


def environment(folder: Path) -> Path:
    """The python of a fresh environment that sees this one's other libraries after its own.

    A path file's directories are appended, and the path files within them are not read: an editable
    install of this project is not seen.
    """
    venv.create(folder, with_pip=False)
    places = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", scheme="venv", vars=places))
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(python: Path, *what: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*command, "--no-deps", "--no-index", "--no-build-isolation", *what], python.parent)


def test_the_wheel_holds_both_packages_and_nothing_else(built):
    names = {
        name for name in zipfile.ZipFile(next(built.glob("*.whl"))).namelist() if name[-1] != "/"
    }
    packaged = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in packaged} == set(PACKAGES)
    assert packaged == files_of_packages()
    assert {"inrun/py.typed", "inrun_kernels/py.typed", "inrun_kernels/bench.csv"} <= packaged
    assert any(name.startswith("inrun/") and name.endswith(".txt") for name in packaged)


def test_the_source_archive_holds_what_a_build_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        name.replace("inrun_kernels/", "kernels/inrun_kernels/", 1) for name in files_of_packages()
    }
    assert {"pyproject.toml", "README.md", "LICENSE", *sources} <= names
    assert not any(name.startswith(("experiments/", "configs/")) for name in names)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_it_is_installed_beside_the_distribution_kernels(built, kernels_wheel, first, tmp_path):
    wheels = [next(built.glob("*.whl")), kernels_wheel]
    python = environment(tmp_path / "environment")
    for wheel in wheels if first == "ours" else reversed(wheels):
        install(python, wheel)
    # from an empty folder, and from the project's own, whose folder `kernels` is no package
    orders = {tmp_path: "kernels, inrun, inrun_kernels", ROOT: "inrun, inrun_kernels, kernels"}
    for folder, order in orders.items():
        code = f"import {order}; {OURS}; {THEIRS}"
        for path in run([python, "-W", "ignore", "-c", code], folder).split():
            assert Path(path).is_relative_to(tmp_path)


def test_an_editable_install_finds_both_packages(source, tmp_path):
    python = environment(tmp_path / "environment")
    install(python, "-e", source)
    code = f"import inrun, inrun_kernels; {OURS}; print(inrun.__file__)"
    ours, library = run([python, "-W", "ignore", "-c", code], tmp_path).split()
    assert Path(ours) == source / "kernels" / "inrun_kernels" / "__init__.py"
    assert Path(library) == source / "inrun" / "__init__.py"
    missing = "import importlib.util; print(importlib.util.find_spec('kernels'))"
    assert run([python, "-c", missing], tmp_path).strip() == "None"
