"""Imports only go down the floors of CONTRIBUTING.md, and some libraries live in one place only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# lowest first; a module may import from its own floor and from those below
FLOORS = [
    ["inrun_kernels", "inrun.config", "inrun.registry", "inrun.files", "inrun.progress"],
    ["inrun.shapley", "inrun.store", "inrun.updates"],
    ["inrun.rules", "inrun.models", "inrun.data", "inrun.evaluate"],
    ["inrun.methods", "inrun.ghost"],
    ["inrun.attributor"],
    ["inrun.train", "inrun.baselines", "inrun.integrations", "inrun.conformance"],
    ["experiments", "notebooks"],
]
LEVEL = {package: level for level, packages in enumerate(FLOORS) for package in packages}

# library -> where alone it may be imported (prefixes of module names)
PLACES = {
    "hydra": ["experiments"],
    "omegaconf": ["experiments"],
    "triton": ["inrun_kernels"],
    "wandb": ["inrun.train.log"],
    "transformers": ["inrun.integrations"],
    "matplotlib": ["experiments.demo.report", "experiments", "notebooks"],
}
NO_TORCH = ["inrun.store", "inrun.shapley"]


def modules() -> dict[str, Path]:
    """Name -> file of every module of the project."""
    found = {}
    for root, top in (
        (ROOT / "kernels", "inrun_kernels"),
        *((ROOT, top) for top in ("inrun", "experiments", "notebooks")),
    ):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in the file, at whatever depth; `from p import m` counts as
    p.m if that is a module.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else base


def floor_of(module: str) -> int | None:
    """Level of the floor that a module stands on, None for what is not on any (other libraries, the
    package's front door).
    """
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (level := LEVEL.get(".".join(parts[:length]))) is not None:
            return level
    return None


def inside(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


ARROWS = [
    (name, line, target)
    for name, path in MODULES.items()
    for line, target in imports_of(name, path)
]


def test_every_module_stands_on_a_floor():
    lost = [name for name in MODULES if name != "inrun" and floor_of(name) is None]
    assert not lost, f"give these a floor in CONTRIBUTING.md and in this test: {lost}"


def test_imports_only_go_down():
    upward = [
        f"{name}:{line} imports {target}"
        for name, line, target in ARROWS
        if floor_of(name) is not None
        and floor_of(target) is not None
        and floor_of(target) > floor_of(name)
    ]
    assert not upward, upward


def test_no_module_reaches_the_library_through_its_front_door():
    # `from inrun import Attributor` inside the library would hide an arrow from the test above
    hidden = [
        f"{name}:{line}"
        for name, line, target in ARROWS
        if target == "inrun" and inside(name, ["inrun", "inrun_kernels"])
    ]
    assert not hidden, hidden


@pytest.mark.parametrize("library", PLACES)
def test_library_is_imported_in_its_place_only(library):
    strays = [
        f"{name}:{line}"
        for name, line, target in ARROWS
        if target.split(".")[0] == library and not inside(name, PLACES[library])
    ]
    assert not strays, f"{library} belongs into {PLACES[library]}: {strays}"


def test_kernels_need_torch_and_triton_only():
    foreign = {
        f"{name}:{line} {target}"
        for name, line, target in ARROWS
        if inside(name, ["inrun_kernels"])
        and target.split(".")[0]
        not in {"inrun_kernels", "torch", "triton", "__future__", *sys.stdlib_module_names}
    }
    assert not foreign, sorted(foreign)


def test_store_and_shapley_do_without_torch():
    strays = [
        f"{name}:{line}"
        for name, line, target in ARROWS
        if inside(name, NO_TORCH) and target.split(".")[0] == "torch"
    ]
    assert not strays, strays


def test_libraries_do_not_edit_the_import_path():
    text = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert not [name for name, source in text.items() if "sys" + ".path" in source]


def test_parser_sees_nested_and_relative_imports(tmp_path):
    path = tmp_path / "writer.py"
    path.write_text(
        "def f():\n    from ..train import log\nfrom . import schema\nimport torch.nn\n"
    )
    seen = set(imports_of("inrun.store.writer", path))
    assert seen == {
        (2, "inrun.train.log" if "inrun.train.log" in MODULES else "inrun.train"),
        (3, "inrun.store.schema"),
        (4, "torch.nn"),
    }
