"""Files that are malformed, settings that make no sense, and what the command says of them."""

import dataclasses
import io
import json

import pytest
import zstandard

from inrun.config import build
from inrun.data.__main__ import main
from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from tests.support.corpus_example import BLOCK, config, rows, write_jsonl


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"content": "a"}\n', "no `text`"),
        (b'["a"]\n', "object per line"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "raw.jsonl").write_bytes(content)
    with pytest.raises(RuntimeError, match=message):
        prepare(config(tmp_path / "raw.jsonl"), tmp_path)


def test_a_place_without_documents_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no file of documents"):
        prepare(config(tmp_path / "nothing"), tmp_path)
    (tmp_path / "x.csv").write_text("text\n")
    with pytest.raises(RuntimeError, match="no known kind"):
        prepare(config(tmp_path / "x.csv"), tmp_path)


def test_too_little_text_for_one_chunk_is_an_error(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", [{"text": "too short"}])
    with pytest.raises(RuntimeError, match="no train chunk"):
        prepare(config(tmp_path / "raw.jsonl"), tmp_path)


def test_the_command_prints_the_folder_and_refuses_unknown_settings(folder, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(
        f"source: files\npath: {folder}\ntokenizer: bytes\nblock_size: 64\nthreads: 1\n"
    )
    main(
        [
            "--config",
            str(tmp_path / "x.yaml"),
            "--root",
            str(tmp_path / "out"),
            f"block_size={BLOCK}",
            "name=mine",
        ]
    )
    out, err = capsys.readouterr()
    assert Corpus.open(out.strip()).block_size == BLOCK
    assert "ArXiv" in err
    with pytest.raises(SystemExit, match="1"):
        main(["blocksize=3"])
    assert "blocksize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(source="web"), "no source of documents 'web'; known are files, hub, offline"),
        (dict(path=""), "needs a path"),
        (dict(tokenizer="gpt3"), "tokenizer='gpt3': choose one of"),
        (dict(block_size=1), "block_size"),
        (dict(noise=1.0), "is a share of the chunks"),
        (dict(noise_kinds=["rain"]), "noise_kinds"),
        (dict(noise=0.1, noise_kinds=[]), "noise_kinds is empty"),
        (dict(val_share=0.6, test_share=0.4), "nothing to train on"),
        (dict(max_tokens=-1), "negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**{"path": "somewhere", **changes})


def test_the_config_files_hold_settings_only(request):
    import yaml

    files = sorted((request.config.rootpath / "configs" / "data").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        given = yaml.safe_load(file.read_text())
        # what follows from the model is composed by Hydra (tests/experiments/test_configs.py)
        plain = {key: value for key, value in given.items() if not str(value).startswith("${")}
        settings = build(DataConfig, plain)
        assert given.keys() <= {field.name for field in dataclasses.fields(DataConfig)}
        assert settings.name == file.stem
    with pytest.raises(ValueError, match="unknown key 'block'; known are name, source"):
        build(DataConfig, {"block": 3})


def test_a_truncated_archive_is_an_error_and_leaves_no_corpus(tmp_path):
    path = tmp_path / "raw.jsonl.zst"
    buffer = io.BytesIO(
        zstandard.compress("".join(json.dumps(row) + "\n" for row in rows(4000)).encode())
    )
    path.write_bytes(buffer.getvalue()[:-2000])
    with pytest.raises(RuntimeError, match=r"raw\.jsonl\.zst"):
        prepare(config(path), tmp_path)
    assert not list((tmp_path / "corpora").glob("test-*[0-9a-f]/manifest.json"))
