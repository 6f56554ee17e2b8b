"""Preparing a corpus from local files, with the byte tokenizer, whose ids any test can compute by
itself.
"""

import dataclasses
import gzip
import io
import json
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from inrun.config import build
from inrun.data.__main__ import main
from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.noise import NOISE_KINDS
from inrun.data.packing import token_dtype
from inrun.data.prepare import prepare
from inrun.data.tokenizers import GPT2_BYTE_ORDER

BLOCK = 32
EOT = 256
ID_OF_BYTE = {byte: rank for rank, byte in enumerate(GPT2_BYTE_ORDER)}


def tokens_of(text: str) -> list[int]:
    return [ID_OF_BYTE[byte] for byte in text.encode()] + [EOT]


def sentences(rng: random.Random, words: int) -> str:
    return " ".join(
        rng.choice(["alpha", "béta", "gamma", "delta", "日本", "eta"]) for _ in range(words)
    )


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "text": sentences(rng, rng.randint(1, 60)),
            "meta": {"pile_set_name": rng.choice(["ArXiv", "Github", "FreeLaw"])},
        }
        for _ in range(count)
    ]


def write_jsonl(path, documents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(document) + "\n" for document in documents).encode()
    if path.name.endswith(".gz"):
        content = gzip.compress(content)
    elif path.name.endswith(".zst"):
        content = zstandard.compress(content)
    path.write_bytes(content)


def config(path, **changes) -> DataConfig:
    settings = dict(
        name="test",
        source="files",
        path=str(path),
        tokenizer="bytes",
        block_size=BLOCK,
        val_share=0.2,
        test_share=0.1,
    )
    return DataConfig(**{**settings, **changes, "threads": 1})


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "raw" / "a.jsonl", rows(150, seed=1))
    write_jsonl(tmp_path / "raw" / "b.jsonl", rows(150, seed=2))
    return tmp_path / "raw"


def stream_of(corpus: Corpus, domain: str, kind: str = "clean") -> list[int]:
    return corpus[corpus.ids(domain=domain, kind=kind)].flatten().tolist()


def test_chunks_are_the_documents_of_one_domain_one_after_the_other(folder, tmp_path):
    place = prepare(config(folder), tmp_path / "out")
    documents = {
        f"{name}.jsonl:{n}": row
        for name in "ab"
        for n, row in enumerate(rows(150, seed=" ab".index(name)))
    }
    seen: set[str] = set()
    for split in ("train", "val", "test"):
        corpus = Corpus.open(place, split, verify="hash")
        for domain in corpus.domains:
            table = corpus.chunks.filter(pa.compute.equal(corpus.chunks["domain"], domain))
            in_order = list(
                dict.fromkeys(doc for docs in table["doc_ids"].to_pylist() for doc in docs)
            )
            assert seen.isdisjoint(in_order)
            seen.update(in_order)
            assert {documents[doc]["meta"]["pile_set_name"] for doc in in_order} == {domain}
            expected = [token for doc in in_order for token in tokens_of(documents[doc]["text"])]
            stream = stream_of(corpus, domain)
            assert len(stream) % (BLOCK + 1) == 0
            assert stream == expected[: len(stream)]
            # the order of the source is kept
            assert in_order == [doc for doc in documents if doc in set(in_order)]
    # only what sits in unfilled last chunks is missing: at most one chunk per split and domain
    tokens = sum(len(tokens_of(row["text"])) for row in documents.values())
    manifest = Corpus.open(place).manifest
    kept = sum(about["chunks"] * (BLOCK + 1) for about in manifest["splits"].values())
    assert (
        kept + sum(about["dropped_tail_tokens"] for about in manifest["splits"].values()) == tokens
    )
    assert tokens - kept <= 9 * BLOCK
    assert manifest["counts"]["tokens"] == tokens


def test_the_chunk_table_says_where_each_document_begins_or_goes_on(folder, tmp_path):
    corpus = Corpus.open(prepare(config(folder), tmp_path / "out"))
    documents = {
        f"{name}.jsonl:{n}": row
        for name in "ab"
        for n, row in enumerate(rows(150, seed=" ab".index(name)))
    }
    starts = corpus.document_starts(range(len(corpus)))
    for row in corpus.chunks.to_pylist():
        chunk = corpus[row["chunk_id"]][0].tolist()
        assert row["doc_starts"] == starts[row["chunk_id"]].tolist()
        ends = [*row["doc_starts"][1:], BLOCK + 1]
        for doc, start, end, offset in zip(
            row["doc_ids"], row["doc_starts"], ends, row["doc_offsets"], strict=True
        ):
            assert (
                chunk[start:end] == tokens_of(documents[doc]["text"])[offset : offset + end - start]
            )
    assert corpus.chunks["chunk_id"].to_pylist() == list(range(len(corpus)))


def test_a_documents_split_does_not_depend_on_the_other_documents(folder, tmp_path):
    def split_by_document(place):
        return {
            doc: split
            for split in ("train", "val", "test")
            for docs in Corpus.open(place, split).chunks["doc_ids"].to_pylist()
            for doc in docs
        }

    whole = split_by_document(prepare(config(folder), tmp_path / "out"))
    part = split_by_document(prepare(config(folder, domains=["ArXiv"]), tmp_path / "out"))
    shared = whole.keys() & part.keys()
    assert len(shared) > 50
    assert all(whole[doc] == part[doc] for doc in shared)
    # 300 documents: binomial standard deviations are 6.9 (val) and 5.2 (test); the tails lose a few
    # documents
    shares = [list(whole.values()).count(split) for split in ("val", "test")]
    assert abs(shares[0] - 60) < 5 * 6.9
    assert abs(shares[1] - 30) < 5 * 5.2


def test_an_interrupted_preparation_goes_on_and_gives_the_same_files(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", rows(1500))
    settings = config(tmp_path / "raw.jsonl", shard_tokens=40 * (BLOCK + 1), noise=0.2)
    expected = prepare(settings, tmp_path / "uninterrupted")
    seen: list[int] = []

    def interrupt(progress):
        seen.append(progress.documents)
        if len(seen) in (2, 5):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, tmp_path / "interrupted", interrupt)
        partial = next((tmp_path / "interrupted" / "corpora").glob("*.partial"))
        with pytest.raises(RuntimeError, match="interrupted"):
            Corpus.open(partial.with_name(partial.name.removesuffix(".partial")))
    resumed = prepare(settings, tmp_path / "interrupted", interrupt)
    # batches of 256: stopped at 512, went on at 256 (the state saved after the first batch),
    # stopped again, went on
    assert seen == [256, 512, 512, 768, 1024, 1024, 1280, 1500]
    for file in expected.rglob("*"):
        if file.is_file():
            assert (resumed / file.relative_to(expected)).read_bytes() == file.read_bytes(), file
    assert len(list(resumed.rglob("*"))) == len(list(expected.rglob("*")))
    assert not list((tmp_path / "interrupted").rglob("*.partial"))


def test_a_half_written_corpus_without_a_saved_state_is_made_anew(folder, tmp_path):
    expected = Corpus.open(prepare(config(folder), tmp_path / "out")).digest
    place = prepare(config(folder), tmp_path / "other")
    partial = place.with_name(place.name + ".partial")
    place.rename(partial)
    (partial / "manifest.json").unlink()
    (partial / "train" / "shard-00000.bin").write_bytes(b"half")
    (partial / "train" / "shard-00099.bin").write_bytes(b"stale")
    with pytest.raises(RuntimeError, match="interrupted"):
        Corpus.open(place)
    assert (
        Corpus.open(prepare(config(folder), tmp_path / "other"), verify="hash").digest == expected
    )
    assert not (place / "train" / "shard-00099.bin").exists()


def test_equal_settings_reuse_the_corpus_and_other_contents_do_not(folder, tmp_path):
    place = prepare(config(folder), tmp_path)
    made = (place / "manifest.json").stat().st_mtime_ns

    def not_again(progress):
        raise AssertionError("it was prepared a second time")

    assert prepare(dataclasses.replace(config(folder), threads=2), tmp_path, not_again) == place
    assert (place / "manifest.json").stat().st_mtime_ns == made
    assert prepare(config(folder, seed=1), tmp_path) != place
    write_jsonl(folder / "b.jsonl", rows(150, seed=3))
    assert prepare(config(folder), tmp_path) != place


def test_noise_is_its_share_of_the_train_chunks_of_every_domain_and_of_no_other_split(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", rows(2500))
    place = prepare(config(tmp_path / "raw.jsonl", noise=0.15), tmp_path)
    train = Corpus.open(place, "train")
    for domain in train.domains:
        clean = train.ids(domain=domain, kind="clean").size
        noisy = [train.ids(domain=domain, kind=kind).size for kind in NOISE_KINDS]
        # a noise document has up to 4 * 33 characters of at most 1.5 bytes on average: one too many
        # is 6 chunks
        assert -0.5 <= sum(noisy) - 0.15 / 0.85 * clean <= 6
        assert min(noisy) > 0
        assert max(noisy) - min(noisy) <= 6
    for split in ("val", "test"):
        assert set(Corpus.open(place, split).chunks["kind"].to_pylist()) == {"clean"}
    assert all(
        doc.startswith("noise/")
        for row in train.ids(kind="symbols")
        for doc in train.chunks["doc_ids"][row].as_py()
    )


def test_ground_truth_that_the_files_bring_along_is_kept(tmp_path):
    documents = [
        {**row, "kind": "spam" if n % 3 else "clean", "pile_like": "Pile-CC"}
        for n, row in enumerate(rows(120))
    ]
    write_jsonl(tmp_path / "raw.jsonl", documents)
    corpus = Corpus.open(prepare(config(tmp_path / "raw.jsonl"), tmp_path))
    for row in corpus.chunks.to_pylist():
        numbers = [int(doc.split(":")[1]) for doc in row["doc_ids"]]
        assert {documents[n]["kind"] for n in numbers} == {row["kind"]}
        assert row["pile_like"] == "Pile-CC"


def test_unusable_documents_are_counted_and_left_out(tmp_path):
    path = tmp_path / "raw.jsonl"
    write_jsonl(path, rows(60))
    with open(path, "ab") as file:
        file.write(b'{"text": "  \\n"}\n{"text": ""}\n{"text": "a"}\n\n')
        file.write(b'{"text": "caf\xe9 not utf-8"}\n{"text": "lone \\ud800 surrogate"}\n')
    counts = Corpus.open(prepare(config(path), tmp_path)).manifest["counts"]
    assert counts["skipped"] == {"empty": 2, "one_token": 1, "invalid_utf8": 2}
    assert counts["documents"] == 65


def test_a_document_that_spells_the_end_of_text_token_does_not_get_it(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", [{"text": "x<|endoftext|>y" * 20}] * 8)
    corpus = Corpus.open(prepare(config(tmp_path / "raw.jsonl"), tmp_path))
    table = corpus.chunks
    begun = sum(offset == 0 for offsets in table["doc_offsets"].to_pylist() for offset in offsets)
    ended = int((corpus[range(len(corpus))] == EOT).sum())
    assert begun - 1 <= ended <= begun
    assert "x<|endoftext|>y" in corpus.text(0)


def test_limits_stop_the_reading(folder, tmp_path):
    counts = Corpus.open(prepare(config(folder, max_bytes_per_domain=3000), tmp_path)).manifest[
        "counts"
    ]
    longest = max(len(row["text"].encode()) for seed in (1, 2) for row in rows(150, seed))
    assert 9000 <= counts["bytes"] <= 9000 + 3 * longest
    some = config(folder, max_tokens=1)
    counts = Corpus.open(prepare(some, tmp_path)).manifest["counts"]
    assert counts["documents"] == 256  # one batch


def test_all_file_formats_give_the_same_corpus(tmp_path):
    documents = [{**row, "doc_id": str(n)} for n, row in enumerate(rows(100))]
    for ending in ("jsonl", "jsonl.gz", "jsonl.zst"):
        write_jsonl(tmp_path / ending / f"x.{ending}", documents)
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(documents), tmp_path / "parquet" / "x.parquet")
    digests = {
        Corpus.open(prepare(config(tmp_path / ending), tmp_path / "out")).digest
        for ending in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
    }
    assert len(digests) == 1


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


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(count: int) -> int:
        write_jsonl(tmp_path / f"{count}.jsonl", rows(64, seed=9) * (count // 64))
        tracemalloc.start()
        prepare(config(tmp_path / f"{count}.jsonl", shard_tokens=200 * (BLOCK + 1)), tmp_path)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(640)  # imports and caches
    small, large = peak(1280), peak(5120)
    assert (
        large < 1.3 * small
    )  # four times the text; the manifest alone grows, by some 300 bytes per shard


def test_ids_up_to_65535_are_stored_in_two_bytes():
    assert token_dtype(2**16) == np.dtype("<u2")
    assert token_dtype(2**16 + 1) == np.dtype("<u4")


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
        settings = build(DataConfig, yaml.safe_load(file.read_text()))
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
