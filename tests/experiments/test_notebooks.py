"""The notebooks: no outputs in the repository, and every cell runs on a small run."""

import json
import re

import pytest
from rich.console import Console

from experiments.arguments import composed
from experiments.copyright.study import CopyrightConfig
from experiments.copyright.texts import write_texts
from experiments.notebooks import NOTEBOOKS, NotebooksConfig, executed, run_config
from experiments.retrieval.study import RetrievalConfig
from inrun.config import build
from inrun.data.corpus import Corpus
from inrun.store import ValueStore
from inrun.train import train_or_reuse
from tests.support.train_example import settings, write_documents

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_notebooks_are_stripped():
    assert [path.stem for path in SOURCES] == [
        "01_top_and_bottom_chunks",
        "02_value_dynamics",
        "03_copyright",
    ]
    for path in SOURCES:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell["metadata"] == {}, path.name
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], path.name
                assert cell["execution_count"] is None, path.name


@pytest.mark.slow
def test_notebooks_run_and_show_what_the_store_holds(tmp_path):
    write_documents(tmp_path / "raw")
    documents = [
        json.loads(line) for line in (tmp_path / "raw" / "documents.jsonl").read_text().splitlines()
    ]
    rewritten = [
        {
            "original": f"documents.jsonl:{k}",
            "level": "close",
            "text": documents[k]["text"].replace("the", "this"),
        }
        for k in (4, 8)
    ]
    (tmp_path / "rewritten.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rewritten))
    small = settings(tmp_path)
    config = build(
        NotebooksConfig,
        {
            "name": "notebooks", "runs": str(tmp_path / "runs"),
            "data_root": str(tmp_path / "data"), "level": "close", "domains": ["ArXiv"],
            "texts": {"source": "files", "path": str(tmp_path / "raw"),
            "variants": str(tmp_path / "rewritten.jsonl")},
            "model": small["model"], "data": {**small["data"], "noise": 0.2}, "train": {"steps": 4,
            "batch_size": 8, "device": "cpu", "eval_chunks": 2},
            "optim": small["optim"],
        },
    )  # fmt: skip
    folder = tmp_path / "runs" / "notebooks"
    texts = write_texts(config.texts, config.data, config.data_root, folder / "texts")
    run = train_or_reuse(run_config(config, texts, folder), Console(quiet=True))
    shown = {
        path.stem: path.read_text(encoding="utf-8") for path in executed(run, folder / "executed")
    }
    assert len(shown) == 3
    assert all('"image/png"' in text for text in shown.values())
    outputs = [
        o for cell in json.loads(shown["03_copyright"])["cells"] for o in cell.get("outputs", [])
    ]
    table = "".join(outputs[-1]["data"]["text/plain"])  # the ranks of the originals by every method
    corpus = Corpus.open(json.loads((run / "run.json").read_text())["corpus"], "train")
    with ValueStore(run / "values") as store:
        for original in texts.originals:
            holding = {
                k
                for k, ids in enumerate(corpus.chunks["doc_ids"].to_pylist())
                if original.doc_id in ids
            }
            expected = []
            for method in ("first_order", "path"):
                order = store.top(10**6, original.name, method)["sample_id"].to_pylist()
                expected.append(
                    next((str(k) for k, i in enumerate(order, start=1) if i in holding), "<NA>")
                )
            assert re.search(
                rf"{original.name}\s+" + r"\s+".join(map(re.escape, expected)), table
            ), table


@pytest.mark.parametrize(
    ("name", "settings_type", "scales"),
    [
        ("notebooks", NotebooksConfig, [[]]),
        (
            "copyright",
            CopyrightConfig,
            [
                ["copyright=cpu"],
                ["copyright=paper", "texts.source=files", "texts.path=a", "texts.variants=b"],
            ],
        ),
        ("retrieval", RetrievalConfig, [["retrieval=cpu"], ["retrieval=paper"]]),
    ],
)
def test_configs_build_and_their_own_values_win_over_the_groups(name, settings_type, scales):
    for overrides in scales:
        found = build(settings_type, composed(name, overrides))
        assert found.data.block_size == found.model.get("block_size", 1024)
        assert found.data.tokenizer == ("gpt2" if "paper" in str(overrides) else "gpt2-2k")
