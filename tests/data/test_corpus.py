"""Reading a prepared corpus: what it refuses, and with which name."""

import json

import numpy as np
import pytest
import torch

from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.errors import (
    CorpusIncomplete,
    DataError,
    ShardDamaged,
    TokenizerMismatch,
    TokenOutOfRange,
)
from inrun.data.prepare import prepare
from inrun.data.sampler import Sampler

BLOCK = 16


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "raw.jsonl", "w") as file:
        for number in range(80):
            text = "".join(rng.choice(list("abcdé "), size=50))
            file.write(json.dumps({"text": text + ".", "domain": f"d{number % 3}"}) + "\n")
    config = DataConfig(
        name="small",
        source="files",
        path=str(tmp_path / "raw.jsonl"),
        tokenizer="bytes",
        block_size=BLOCK,
        shard_tokens=20 * (BLOCK + 1),
        threads=1,
    )
    return prepare(config, tmp_path)


def shard_files(place):
    return sorted((place / "train").glob("*.bin"))


def test_ids_in_any_order_and_over_several_shards_give_their_rows(place):
    corpus = Corpus.open(place)
    on_disk = np.concatenate(
        [np.fromfile(file, dtype="<u2") for file in shard_files(place)]
    ).reshape(-1, BLOCK + 1)
    assert len(corpus) == len(on_disk) > 40
    ids = np.random.default_rng(1).permutation(len(corpus))[:30]
    tokens = corpus[ids]
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens.numpy(), on_disk[ids])
    np.testing.assert_array_equal(corpus[torch.from_numpy(ids)].numpy(), on_disk[ids])
    np.testing.assert_array_equal(corpus[[5, 5]].numpy(), on_disk[[5, 5]])
    assert corpus[[]].shape == (0, BLOCK + 1)
    assert corpus[Sampler(len(corpus), 4, seed=0).batch_at(7)].shape == (4, BLOCK + 1)


@pytest.mark.parametrize("wrong", [[-1], [10**6], [0, 10**6]])
def test_ids_that_do_not_exist_are_refused(place, wrong):
    with pytest.raises(IndexError, match="there is no chunk"):
        Corpus.open(place)[wrong]


def test_ids_that_are_no_integers_are_refused(place):
    with pytest.raises(TypeError, match="row of integers"):
        Corpus.open(place)[[0.5]]
    with pytest.raises(TypeError, match="row of integers"):
        Corpus.open(place)[np.zeros((2, 2), dtype=int)]


def test_chunks_are_found_by_domain_and_kind(place):
    corpus = Corpus.open(place)
    assert corpus.domains == ["d0", "d1", "d2"]
    table = corpus.chunks
    for domain in corpus.domains:
        expected = [row for row in range(len(corpus)) if table["domain"][row].as_py() == domain]
        np.testing.assert_array_equal(corpus.ids(domain=domain, kind="clean"), expected)
    assert corpus.ids(domain=["d0", "d2"]).size == corpus.ids("d0").size + corpus.ids("d2").size
    np.testing.assert_array_equal(corpus.ids(), np.arange(len(corpus)))
    assert corpus.ids().dtype == np.int64
    with pytest.raises(DataError, match=r"no chunk has domain \['d9'\]"):
        corpus.ids(domain="d9")
    with pytest.raises(DataError, match="kind"):
        corpus.ids(kind=["markup"])


def test_the_text_of_a_chunk_is_its_bytes(place):
    corpus = Corpus.open(place)
    tokenizer = corpus.tokenizer
    for chunk in (0, 11):
        expected = "".join(
            "<|endoftext|>" if t == tokenizer.eot else tokenizer.decode([t])
            for t in corpus[chunk][0]
        )
        assert corpus.text(chunk).replace("\ufffd", "").replace("é", "") == expected.replace(
            "\ufffd", ""
        )


def test_a_missing_shard_is_named_with_the_next_step(place):
    shard_files(place)[1].unlink()
    with pytest.raises(
        ShardDamaged, match=r"shard-00001\.bin is missing\. Next: delete .* and prepare it again"
    ):
        Corpus.open(place)


def test_a_shard_that_vanishes_after_opening_is_named_when_it_is_read(place):
    corpus = Corpus.open(place)
    shard_files(place)[1].unlink()
    corpus[[0]]
    with pytest.raises(ShardDamaged, match=r"shard-00001\.bin is missing"):
        corpus[[25]]


def test_a_truncated_shard_is_seen_by_its_size(place):
    file = shard_files(place)[0]
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ShardDamaged, match="bytes instead of"):
        Corpus.open(place)


@pytest.mark.parametrize("ending", ["bin", "parquet"])
def test_one_flipped_bit_is_seen_by_the_hash(place, ending):
    file = place / "train" / f"shard-00001.{ending}"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    Corpus.open(place, verify="size")
    with pytest.raises(ShardDamaged, match="another sha256"):
        Corpus.open(place, verify="hash")


def test_a_token_beyond_the_vocabulary_is_refused_with_its_chunk(place):
    file = shard_files(place)[1]
    tokens = np.fromfile(file, dtype="<u2")
    tokens[3 * (BLOCK + 1) + 2] = 257
    tokens.tofile(file)
    corpus = Corpus.open(place)
    corpus[[20, 22, 24]]
    with pytest.raises(
        TokenOutOfRange, match="train chunk 23: token id 257, but the vocabulary of bytes has 257"
    ):
        corpus[[20, 23, 24]]


def test_a_model_that_cannot_read_the_corpus_is_refused_before_the_first_step(place):
    corpus = Corpus.open(place)
    corpus.check(n_vocab=257, tokenizer_sha256=corpus.tokenizer.sha256)
    corpus.check(n_vocab=50304)
    with pytest.raises(TokenOutOfRange, match=r"256 token embeddings.*ids up to 256"):
        corpus.check(n_vocab=256)
    with pytest.raises(TokenizerMismatch, match="made with tokenizer bytes"):
        corpus.check(tokenizer_sha256="0" * 64)


def test_an_exchanged_tokenizer_file_is_refused(place):
    file = place / "tokenizer.tiktoken"
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(TokenizerMismatch, match="not the file of the manifest"):
        Corpus.open(place).text(0)


def test_no_corpus_unknown_split_and_unknown_format_are_told_apart(place, tmp_path):
    with pytest.raises(CorpusIncomplete, match="nothing was prepared there"):
        Corpus.open(tmp_path / "nowhere")
    with pytest.raises(CorpusIncomplete, match="no split 'dev'; it has"):
        Corpus.open(place, "dev")
    with pytest.raises(ValueError, match="verify"):
        Corpus.open(place, verify="maybe")
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CorpusIncomplete, match="format 99"):
        Corpus.open(place)


def test_the_digest_follows_from_what_the_split_holds(place, tmp_path):
    digests = {split: Corpus.open(place, split).digest for split in ("train", "val", "test")}
    assert len(set(digests.values())) == 3
    assert Corpus.open(place).digest == digests["train"]
    assert all(len(digest) == 64 for digest in digests.values())
