"""The figure of the README is what the committed results give."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load_figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_medians_are_those_that_the_page_of_results_has():
    medians = load_figures().pearson_medians()
    assert set(medians["adamw", "path_1"]) == {3e-4, 6e-4, 1.5e-3, 5e-3, 5e-2}
    assert medians["adamw", "path_1"][6e-4] > 0.9999
    assert 0.9 < medians["adamw", "sgd_formula"][6e-4] < 0.92
    assert 0.45 < medians["sgd", "first_order"][5e-2] < 0.47


def test_the_figures_are_drawn_into_a_folder(tmp_path):
    load_figures().main(tmp_path)
    assert (tmp_path / "fidelity.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        path.name for path in (ROOT / "docs").glob("*.svg")
    }
