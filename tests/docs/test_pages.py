"""Pages hold together: links, commands, tests and names that they mention exist, and the README
stays short.
"""

import ast
import importlib
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
)
#: tells what was; names in it may be gone
HISTORY = ROOT / "CHANGELOG.md"
README_WORDS = 900
GLOSSARY_LINES = 2

BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"\bmake ([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*)")
MODULE = re.compile(r"python -m (inrun[\w.]*|experiments[\w.]*)(?: +([a-z][\w-]*)(?=[\s`]|$))?")
TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
FILE = re.compile(
    r"^(?:docs|examples|tests|inrun|kernels|experiments|configs|notebooks)/[\w./-]*$"
    r"|^\.(?:ci|github|pre-commit)[\w/.-]*$"
)
NAME = re.compile(r"^(inrun(?:_kernels)?(?:\.\w+)+)(?:\(.*\))?$")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each_page(function):
    return pytest.mark.parametrize("page", PAGES, ids=page_id)(function)


def each_page_of_today(function):
    today = [page for page in PAGES if page != HISTORY]
    return pytest.mark.parametrize("page", today, ids=page_id)(function)


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {path}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading in {path or page.name}"


def test_every_page_can_be_reached_from_the_readme():
    seen, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        found = (link.partition("#")[0] for link in LINK.findall(prose(page)))
        open_pages += [(page.parent / link).resolve() for link in found if link]
    assert not set(PAGES) - seen, sorted(map(page_id, set(PAGES) - seen))


def test_the_readme_is_read_in_two_screens():
    words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert words <= README_WORDS, f"{words} words: move some of it into a page"


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = set(re.findall(r"^([a-z][a-z0-9-]*):", text, re.MULTILINE))
    for phony in re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE):
        names |= {name for name in phony.split() if not name.startswith("$")}
    return names


def commands(page: Path) -> Iterator[str]:
    """Lines of code blocks, without their comments, and code inside sentences."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        yield from (line.partition("#")[0] for line in block.splitlines()[1:-1])
    yield from CODE.findall(BLOCK.sub("", text))


@each_page_of_today
def test_make_targets_exist(page):
    known = make_targets()
    named = {
        target
        for command in commands(page)
        for targets in MAKE.findall(command)
        for target in targets.split()
    }
    assert not named - known, f"the Makefile has no {sorted(named - known)}"


@each_page_of_today
def test_commands_name_modules_and_studies_that_exist(page):
    for command in commands(page):
        for module, study in MODULE.findall(command):
            assert importlib.util.find_spec(module), f"{command}: there is no {module}"
            if module == "experiments" and study:
                folder = ROOT / "experiments"
                found = (folder / study / "study.py", folder / f"{study}.py")
                assert any(path.exists() for path in found), f"{command}: no such experiment"


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@each_page_of_today
def test_tests_that_are_named_exist(page):
    for path, name in TEST.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
        assert name in functions_of(ROOT / path), f"{path} has no {name}"


@each_page_of_today
def test_files_that_are_named_exist(page):
    for code in CODE.findall(prose(page)):
        path = code.partition("::")[0]
        if FILE.match(path) and not re.search(r"NAME|\.\.\.", path):
            assert (ROOT / path).exists(), f"`{code}`: there is no {path}"


def resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


@each_page_of_today
def test_python_names_that_are_used_exist(page):
    for code in CODE.findall(prose(page)):
        if match := NAME.match(code):
            resolve(match[1])


@each_page_of_today
def test_python_in_pages_parses_and_imports_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inrun"):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


@each_page
def test_prose_is_no_wider_than_100_columns(page):
    wide = [
        f"{number}: {line[:60]}"
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        # a table row and a single long word (a test's name, an address) cannot be broken
        if len(line) > 100 and not line.lstrip().startswith("|") and len(line.split()) > 2
    ]
    assert not wide, wide


def test_glossary_entries_are_short():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*(.+?)\*\*(.*(?:\n  .*)*)", text, re.MULTILINE)
    assert len(entries) == 20
    long = [
        term
        for term, rest in entries
        if len(textwrap.wrap(f"- {term}{' '.join(rest.split())}", 100)) > GLOSSARY_LINES
    ]
    assert not long, f"a word that needs more lines is the wrong word: {long}"
    terms = [term for term, _ in entries]
    assert terms == sorted(terms, key=str.lower)


def test_decisions_are_numbered_and_say_what_would_change_them():
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(page.name[:3]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        titles = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert titles == ["Context", "Choice", "Rejected", "What would change it"], page.name
