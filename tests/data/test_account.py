"""Documents in are documents accounted for: used, left out for a reason, or an error by row."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from inrun.data.account import account
from inrun.data.corpus import Corpus
from inrun.data.errors import DataError
from inrun.data.prepare import prepare
from tests.support.corpus_example import BLOCK, config, rows, write_jsonl

SPLITS = ("train", "val", "test")
FILL = {"text": "x" * 500, "domain": "A"}


def manifest_of(path, out, **changes) -> dict:
    folder = prepare(config(path, **{"val_share": 0, "test_share": 0, **changes}), out)
    return Corpus.open(folder).manifest


def documents_in_chunks(folder: Path) -> set[str]:
    found: set[str] = set()
    for split in SPLITS:
        for row in Corpus.open(folder, split).chunks.to_pylist():
            found.update(row["doc_ids"])
    return found


def adds_up(counts: dict) -> bool:
    skipped = sum(counts["skipped"].values())
    return counts["documents"] == counts["used"] + skipped + counts["in_no_chunk"]


texts = st.one_of(
    st.none(),
    st.text(max_size=80),
    st.text("ab \n", max_size=200),
    st.sampled_from(["", " \n", "a", "lone \ud800", "\u3000" * 40]),
)
documents = st.fixed_dictionaries(
    {"text": texts},
    optional={
        "domain": st.sampled_from(["A", "B", "", 0, None]),
        "kind": st.sampled_from(["clean", "spam"]),
        "meta": st.sampled_from([None, {"pile_set_name": "B"}, '{"pile_set_name": "C"}']),
    },
)


@given(
    found=st.lists(documents, max_size=40),
    domains=st.sampled_from([(), ("A",), ("A", "B", "nobody")]),
    limit=st.sampled_from([0, 100]),
    noise=st.sampled_from([0.0, 0.4]),
)
@example_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_documents_in_are_documents_accounted_for(found, domains, limit, noise):
    with TemporaryDirectory() as place:
        path = Path(place) / "raw.jsonl"
        lines = [json.dumps(row).encode() + b"\n" for row in [*found, FILL]]
        path.write_bytes(b"".join(lines) + b'{"text": "caf\xe9"}\n\n')
        wanted = config(path, domains=domains, max_bytes_per_domain=limit, noise=noise)
        refused = ""
        try:
            folder = prepare(wanted, place)
        except DataError as error:
            refused = str(error)
        if refused:
            assert "no train chunk" in refused
            assert f"{len(found) + 2:,} documents: " in refused
            return
        counts = Corpus.open(folder).manifest["counts"]
        assert counts["documents"] == len(found) + 2
        assert adds_up(counts), counts
        inside = documents_in_chunks(folder)
        assert counts["used"] == len({doc for doc in inside if not doc.startswith("noise/")})
        assert counts["skipped"].get("null", 0) <= sum(row["text"] is None for row in found)
        assert counts["skipped"]["invalid_utf8"] >= 1


def test_domains_that_end_before_a_chunk_is_full_are_counted_by_name(tmp_path):
    small = [{"text": f"small {k}", "domain": f"small-{k % 3}"} for k in range(6)]
    write_jsonl(tmp_path / "raw.jsonl", [FILL, *small])
    manifest = manifest_of(tmp_path / "raw.jsonl", tmp_path)
    assert manifest["counts"]["in_no_chunk"] == 6
    assert manifest["counts"]["used"] == 1
    assert manifest["splits"]["train"]["documents_in_no_chunk"] == {
        "small-0": 2,
        "small-1": 2,
        "small-2": 2,
    }


def test_noise_is_no_document_of_the_source(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", rows(300))
    manifest = manifest_of(tmp_path / "raw.jsonl", tmp_path, noise=0.3)
    assert manifest["counts"]["noise_documents"] > 0
    assert manifest["counts"]["documents"] == 300
    assert adds_up(manifest["counts"])


def test_an_interrupted_preparation_counts_each_document_once(tmp_path):
    mixed = [
        {**row, "text": None if k % 7 == 0 else row["text"]} for k, row in enumerate(rows(1500))
    ]
    write_jsonl(tmp_path / "raw.jsonl", mixed)
    wanted = config(
        tmp_path / "raw.jsonl", shard_tokens=150 * (BLOCK + 1), domains=["ArXiv", "Github"]
    )
    whole = Corpus.open(prepare(wanted, tmp_path / "whole")).manifest
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) in (2, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted, tmp_path / "parts", interrupt)
    assert Corpus.open(prepare(wanted, tmp_path / "parts")).manifest == whole
    assert adds_up(whole["counts"])
    assert whole["counts"]["skipped"]["null"] == 215  # 0, 7, ..., 1498
    assert whole["counts"]["skipped"]["other_domain"] > 300


def test_what_wantedleave_out_does_not_change_the_noise(tmp_path):
    kept = [row for row in rows(900) if row["meta"]["pile_set_name"] == "ArXiv"]
    kept = [{**row, "doc_id": f"d{k}"} for k, row in enumerate(kept)]
    others = [{"text": "other " * 20, "domain": "other", "doc_id": f"o{k}"} for k in range(600)]
    write_jsonl(tmp_path / "some.jsonl", kept)
    write_jsonl(tmp_path / "all.jsonl", [*others[:300], *kept, *others[300:]])
    digests = [
        Corpus.open(
            prepare(config(tmp_path / name, domains=["ArXiv"], noise=0.2), tmp_path / "out")
        ).digest
        for name in ("some.jsonl", "all.jsonl")
    ]
    assert digests[0] == digests[1]


def test_the_line_says_how_many_and_why(tmp_path):
    write_jsonl(
        tmp_path / "raw.jsonl",
        [FILL, {"text": None}, {"text": ""}, {"text": "b" * 99, "domain": "B"}, {"text": "tail"}],
    )
    manifest = manifest_of(tmp_path / "raw.jsonl", tmp_path, domains=["A", "unlabelled", "C"])
    assert account(manifest) == (
        "5 documents: 1 used, 1 left out (empty), 1 left out (null), "
        "1 left out (of other domains), 1 in no chunk (after the last one of its domain); "
        "1 without a domain; no document of C"
    )
    limited = manifest_of(tmp_path / "raw.jsonl", tmp_path, max_tokens=1, domains=["A", "C"])
    assert "stopped at max_tokens" in account(limited)
    assert "no document of" not in account(limited), "what was not read may hold it"
    old = {"counts": {"documents": 3, "skipped": {"empty": 1}}}
    assert account(old) == "3 documents: 1 left out (empty)"


def test_a_domain_that_nobody_has_names_those_that_are_there(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", rows(30))
    with pytest.raises(
        DataError, match=r"30 left out \(of other domains\).*ArXiv, FreeLaw, Github"
    ):
        manifest_of(tmp_path / "raw.jsonl", tmp_path, domains=["Arxiv"])


def test_the_command_prints_the_line(tmp_path, capsys):
    from inrun.data.__main__ import main

    write_jsonl(tmp_path / "raw.jsonl", [FILL, {"text": None}])
    settings = ["source=files", f"path={tmp_path / 'raw.jsonl'}", "tokenizer=bytes"]
    settings += ["block_size=32", "val_share=0", "test_share=0"]
    main([*settings, "--root", str(tmp_path)])
    assert "2 documents: 1 used, 1 left out (null)" in " ".join(capsys.readouterr().err.split())


class Panic(BaseException):
    """As pyo3's, which is no Exception."""


def test_a_document_that_the_tokenizer_fails_on_is_left_out_alone(tmp_path, monkeypatch):
    from inrun.data.tokenizers import BytePairTokenizer

    encode, batch = BytePairTokenizer.encode, BytePairTokenizer.encode_batch

    def fails(text):
        if "poison" in text:
            raise Panic("StackOverflow")

    def encode_one(self, text):
        fails(text)
        return encode(self, text)

    def encode_all(self, texts, threads):
        fails("".join(texts))
        return batch(self, texts, threads)

    monkeypatch.setattr(BytePairTokenizer, "encode", encode_one)
    monkeypatch.setattr(BytePairTokenizer, "encode_batch", encode_all)
    write_jsonl(tmp_path / "raw.jsonl", [FILL, {"text": "poison"}, FILL])
    manifest = manifest_of(tmp_path / "raw.jsonl", tmp_path)
    assert manifest["counts"]["skipped"]["not_tokenisable"] == 1
    assert manifest["counts"]["used"] == 2
    write_jsonl(tmp_path / "all.jsonl", [{"text": "poison 1"}, {"text": "poison 2"}])
    with pytest.raises(DataError, match=r"fails on every document.*all\.jsonl:0"):
        manifest_of(tmp_path / "all.jsonl", tmp_path)


def test_an_interruption_while_tokenising_is_no_fault_of_the_text(tmp_path, monkeypatch):
    from inrun.data.tokenizers import BytePairTokenizer

    def interrupted(self, texts, threads):
        raise KeyboardInterrupt

    monkeypatch.setattr(BytePairTokenizer, "encode_batch", interrupted)
    write_jsonl(tmp_path / "raw.jsonl", rows(5))
    with pytest.raises(KeyboardInterrupt):
        manifest_of(tmp_path / "raw.jsonl", tmp_path)


def test_a_state_of_an_older_version_is_begun_anew(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", rows(1500))
    wanted = config(tmp_path / "raw.jsonl", shard_tokens=150 * (BLOCK + 1))

    def interrupt(progress):
        if progress.documents > 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(wanted, tmp_path, interrupt)
    state = next((tmp_path / "corpora").glob("*.partial/state.json"))
    content = json.loads(state.read_text())
    del content["format"]
    state.write_text(json.dumps(content))
    assert adds_up(Corpus.open(prepare(wanted, tmp_path)).manifest["counts"])
