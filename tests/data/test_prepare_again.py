"""A preparation that was interrupted goes on, one that is done is reused."""

import dataclasses
import gc
import tracemalloc

import pytest

from inrun.data.corpus import Corpus
from inrun.data.prepare import prepare
from tests.support.corpus_example import BLOCK, config, rows, write_jsonl


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


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(count: int) -> int:
        write_jsonl(tmp_path / f"{count}.jsonl", rows(64, seed=9) * (count // 64))
        gc.collect()  # what earlier tests left
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
