"""The workflow, the hooks and the citation agree with the project that they speak of."""

import re
import tomllib
from pathlib import Path

import yaml

from tests.docs.test_pages import MAKE, make_targets

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def workflow_commands() -> list[str]:
    jobs = load(".github/workflows/ci.yml")["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_workflow_runs_targets_and_examples_that_exist():
    text = "\n".join(workflow_commands())
    named = {target for found in MAKE.findall(text) for target in found.split()}
    assert named, "the workflow runs no target"
    assert not named - make_targets()
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert not set(re.findall(r"\b0\d_\w+", text)) - examples


def test_the_workflow_covers_every_python_that_is_promised():
    versions = load(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert versions == [f"3.{minor}" for minor in range(int(low), int(high))]


def test_the_hooks_name_files_that_exist():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for hook in hooks:
        for path in re.findall(r"\btests/[\w/]+\.py", hook["entry"]):
            assert (ROOT / path).exists(), hook["id"]


def test_the_citation_has_the_projects_version_and_the_paper():
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["title"] == "Data Shapley in One Training Run"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Wang",
        "Mittal",
        "Song",
        "Jia",
    ]
