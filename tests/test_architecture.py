"""The shape of the house: floors, places of libraries, ceilings, no circles, no trespass."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# lowest first; a module may import from its own floor and from those below
FLOORS = [
    [
        "inrun_kernels",
        "inrun.config",
        "inrun.registry",
        "inrun.files",
        "inrun.owner",
        "inrun.plain_text",
        "inrun.progress",
    ],
    ["inrun.shapley", "inrun.store", "inrun.updates"],
    ["inrun.rules", "inrun.models", "inrun.data", "inrun.evaluate"],
    ["inrun.methods", "inrun.ghost"],
    ["inrun.attributor"],
    ["inrun.train", "inrun.baselines", "inrun.integrations", "inrun.conformance"],
    ["inrun.command", "inrun.report", "inrun.__main__", "experiments", "notebooks"],
]
LEVEL = {package: level for level, packages in enumerate(FLOORS) for package in packages}

# library -> where alone it may be imported (prefixes of module names)
PLACES = {
    "hydra": ["experiments"],
    "omegaconf": ["experiments"],
    "triton": ["inrun_kernels"],
    "wandb": ["inrun.train.log"],
    "transformers": ["inrun.integrations", "experiments.survey"],
    "peft": ["experiments.survey"],
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
    return imports_in(name, path.name == "__init__.py", ast.parse(path.read_text(encoding="utf-8")))


def imports_in(name: str, is_package: bool, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The same of a tree."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
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


# -- ceilings: what is larger is cut by topic, or listed with its reason

LINES_OF_A_FILE, LINES_OF_A_CLASS, LINES_OF_A_FUNCTION, ARGUMENTS = 300, 250, 40, 12
EXCEPTIONS: dict[str, str] = {}


def every_file() -> list[Path]:
    folders = ("kernels", "inrun", "experiments", "notebooks", "examples", "tests")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """(what, its size, the ceiling) of a file and of what is defined in it; docstrings are free."""
    where, source = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    yield where, source.count("\n"), LINES_OF_A_FILE
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if isinstance(node, ast.ClassDef):
            yield f"{where}:{node.name}", lines, LINES_OF_A_CLASS
            continue
        if ast.get_docstring(node):
            text = node.body[0]
            lines -= (text.end_lineno or text.lineno) - text.lineno + 1
        if where.startswith(("inrun/", "kernels/")):
            yield f"{where}:{node.name}", lines, LINES_OF_A_FUNCTION
        kernel = any(ast.unparse(d).endswith(".jit") for d in node.decorator_list)  # of Triton
        if not kernel and (not node.name.startswith("_") or node.name == "__init__"):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in given if a.arg not in ("self", "cls")])
            yield f"{where}:{node.name}()", count, ARGUMENTS


def test_files_classes_functions_and_signatures_stay_under_their_ceilings():
    found = [size for path in every_file() for size in sizes(path)]
    above = {what: size for what, size, ceiling in found if size > ceiling}
    assert {what: size for what, size in above.items() if what not in EXCEPTIONS} == {}
    assert not set(EXCEPTIONS) - set(above), "these are under the ceiling by now"


def test_sizes_are_counted_without_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "inrun" / "thing.py"
    path.parent.mkdir()
    path.write_text(
        'def f(a, *, b):\n    """One\n\n    two."""\n    return a\n\n\nclass C:\n    x = 1\n'
    )
    assert list(sizes(path)) == [
        ("inrun/thing.py", 9, LINES_OF_A_FILE),
        ("inrun/thing.py:f", 2, LINES_OF_A_FUNCTION),
        ("inrun/thing.py:f()", 2, ARGUMENTS),
        ("inrun/thing.py:C", 2, LINES_OF_A_CLASS),
    ]


# -- circles and trespass


def imported_at_once(name: str, path: Path) -> set[str]:
    """Modules of the project that are imported at the top of this one, not later or for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = imports_in(name, path.name == "__init__.py", tree)
    return {target for _, target in found if target in MODULES and target != name}


def test_no_module_imports_itself_round_a_circle():
    graph = {name: imported_at_once(name, path) for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in way:
            return (*way[way.index(name) :], name)
        if name in done:
            return None
        for target in sorted(graph[name]):
            if circle := walk(target, (*way, name)):
                return circle
        done.add(name)
        return None

    circles = [circle for name in graph if (circle := walk(name, ()))]
    assert not circles, " -> ".join(circles[0])


def private_names(name: str, path: Path) -> Iterator[str]:
    """Uses of another module's names that begin with an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield f"{name}:{node.lineno} imports {node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in MODULES:
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            yield f"{name}:{node.lineno} reads {node.value.id}.{node.attr}"


OURS = {"inrun_kernels", "inrun", "experiments", "tests"}


def test_no_module_uses_the_private_names_of_another():
    files = {str(path.relative_to(ROOT)): path for path in every_file()}
    found = [use for name, path in files.items() for use in private_names(name, path)]
    assert not found, found
