"""Sources that need no package archive: the hub's layout, an unreachable hub, noise and
mathematics.
"""

import itertools
import json
import math
import re
import time
from collections import Counter
from fractions import Fraction

import pytest
import sympy
import zstandard

from inrun.data.config import DataConfig
from inrun.data.corpus import Corpus
from inrun.data.errors import SourceMalformed, SourceUnreachable
from inrun.data.fields import PILE_DOMAINS
from inrun.data.listing import list_files
from inrun.data.mathematics import TOPICS, mathematics
from inrun.data.noise import NOISE_KINDS, make_noise
from inrun.data.offline_texts import pieces
from inrun.data.prepare import prepare
from inrun.data.sources import read_files, read_hub
from inrun.data.tokenizers import load_tokenizer

TEXT = (
    "The whale surfaced near the ship at dawn.\nNobody on deck had slept that night.\nIt blew "
    "twice, and sank."
)


def write_hub_layout(folder):
    """As monology/pile-uncopyrighted: train/00.jsonl.zst, ..., val.jsonl.zst, test.jsonl.zst,
    `text` and `meta`.
    """
    number = 0
    for name in ("train/00.jsonl.zst", "train/01.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"):
        lines = []
        for _ in range(60):
            domain = PILE_DOMAINS[number % 3]
            lines.append(
                json.dumps(
                    {"text": f"{name} number {number} " * 5, "meta": {"pile_set_name": domain}}
                )
            )
            number += 1
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(zstandard.compress("\n".join(lines).encode()))


def test_the_hubs_layout_is_streamed_through_the_same_library_as_the_hub(tmp_path):
    write_hub_layout(tmp_path / "pile")
    for files, start in (
        ("", "train/00.jsonl.zst number 0 "),
        ("val.jsonl.zst", "val.jsonl.zst number 120 "),
    ):
        documents = list(read_hub(str(tmp_path / "pile"), "train", "main", files))
        assert len(documents) == (60 if files else 120)
        assert documents[0].text.startswith(start)
        assert [d.domain for d in documents[:3]] == list(PILE_DOMAINS[:3])
        assert documents[7].doc_id == f"{files or 'train'}:7"
        assert documents[0].pile_like == documents[0].domain
    with pytest.raises(SourceMalformed, match="hub_files"):
        next(read_hub(str(tmp_path / "pile"), "validation", "main"))
    config = DataConfig(
        name="pile", source="hub", path=str(tmp_path / "pile"), tokenizer="bytes", block_size=32
    )
    corpus = Corpus.open(prepare(config, tmp_path))
    assert corpus.domains == sorted(PILE_DOMAINS[:3])
    assert "val.jsonl" not in "".join(corpus.text(chunk) for chunk in range(len(corpus)))
    # the same files read by the project's own reader hold the same texts
    own = [d.text for d in read_files(str(tmp_path / "pile" / "train"))]
    assert own == [d.text for d in read_hub(str(tmp_path / "pile"), "train", "main")]


def test_a_damaged_file_of_a_dataset_is_an_error_of_the_data_layer(tmp_path):
    write_hub_layout(tmp_path)
    file = tmp_path / "train" / "00.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SourceMalformed, match=r"00\.jsonl\.zst: damaged, cut short"):
        list(read_hub(str(tmp_path), "train", "main"))


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ConnectionError("reset"), SourceUnreachable, "document 2: ConnectionError.*goes on"),
        (RuntimeError("bad cast"), SourceMalformed, "document 2: RuntimeError: bad cast"),
    ],
)
def test_a_stream_that_breaks_names_the_document(monkeypatch, error, expected, message):
    def stream(*args, **options):
        yield from [{"text": "a"}, {"text": None}]
        raise error

    monkeypatch.setattr("inrun.data.sources.require_hub", lambda what, instead: None)
    monkeypatch.setattr("datasets.load_dataset", stream)
    documents = read_hub("some/dataset", "train", "main")
    assert [next(documents).skip for _ in range(2)] == ["", "null"]
    with pytest.raises(expected, match=message):
        next(documents)


def test_document_ids_do_not_depend_on_where_the_files_lie(tmp_path):
    for base in ("here", "there/and/deeper"):
        write_hub_layout(tmp_path / base)
    here, there = (list(read_files(str(tmp_path / base))) for base in ("here", "there/and/deeper"))
    assert here == there
    assert here[60].doc_id == "train/00.jsonl.zst:0"
    pattern = list_files(str(tmp_path / "here" / "**" / "0*.zst"))
    assert [path.name for path in pattern] == ["00.jsonl.zst", "01.jsonl.zst"]


def test_a_hub_that_is_switched_off_fails_at_once_and_names_the_offline_way(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = DataConfig(name="pile", source="hub", path="NeelNanda/pile-10k", tokenizer="bytes")
    with pytest.raises(SourceUnreachable, match=r"HF_HUB_OFFLINE.*source='offline'"):
        prepare(config, tmp_path)


def test_an_unreachable_hub_fails_within_seconds_and_names_the_offline_way(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    began = time.monotonic()
    with pytest.raises(SourceUnreachable, match=r"cannot be reached.*source='offline'"):
        next(read_hub("monology/pile-uncopyrighted", "train", "main"))
    with pytest.raises(SourceUnreachable, match="tokenizer_from='package'"):
        load_tokenizer("pythia", tmp_path, source="hub")
    assert time.monotonic() - began < 15


def test_the_17_domains_of_the_uncopyrighted_pile_are_named():
    assert len(set(PILE_DOMAINS)) == 17
    assert list(PILE_DOMAINS) == sorted(PILE_DOMAINS)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_has_the_asked_size_and_follows_from_its_key(kind):
    noise = make_noise(kind, TEXT, 90, key="1")
    assert 60 <= len(noise) <= 90
    assert noise == make_noise(kind, TEXT, 90, key="1")
    assert (
        len({make_noise(kind, TEXT, 90, key=str(key)) for key in range(20)}) >= 3
    )  # TEXT has three lines


def test_each_kind_of_noise_is_what_its_name_says():
    shuffled = make_noise("shuffled", TEXT, 1000, key="a")
    assert Counter(shuffled.split()) == Counter(TEXT.split())
    assert shuffled.split() != TEXT.split()
    repeated = make_noise("repeated", TEXT, 1000, key="a").split("\n")
    assert set(repeated[:-1]) <= set(TEXT.split("\n"))
    assert len(set(repeated[:-1])) == 1
    assert repeated[0].startswith(repeated[-1])
    numbers = make_noise("numbers", TEXT, 1000, key="a")
    assert all(
        math.isfinite(float(cell))
        for cell in re.split(r"[\t\n]|, | \| ", numbers)
        if cell not in ("", "-")
    )
    markup = make_noise("markup", TEXT, 1000, key="a")
    assert len(re.findall(r"<\w+[^>]*>", markup)) > 10
    symbols = make_noise("symbols", TEXT, 2000, key="a")
    assert len(set(symbols)) > 40
    assert len(re.findall(r"[A-Za-z]{4}", symbols)) < 30  # prose has some 300


def test_an_unknown_kind_of_noise_is_refused():
    with pytest.raises(ValueError, match="no noise is called 'rain'"):
        make_noise("rain", TEXT, 10, key="")


def answer_is_right(question: str, answer: str) -> bool:
    """An oracle that shares no code with the generator: sympy, int(text, base) and finite
    differences.
    """
    if match := re.fullmatch(r"Calculate (-?\d+) ([-+*]) (.+)\.", question):
        return sympy.sympify(f"({match[1]}) {match[2]} {match[3]}") == sympy.Integer(answer)
    if match := re.fullmatch(
        r"What is (-?\d+) divided by (\d+), as a fraction in lowest terms\?", question
    ):
        return (
            Fraction(answer) == Fraction(int(match[1]), int(match[2]))
            and str(Fraction(answer)) == answer
        )
    if match := re.fullmatch(r"Calculate the remainder when (\d+) is divided by (\d+)\.", question):
        quotient, rest = divmod(int(match[1]) - int(answer), int(match[2]))
        return rest == 0 and quotient >= 0 and 0 <= int(answer) < int(match[2])
    if match := re.fullmatch(
        r"Calculate the greatest common divisor of (\d+) and (\d+)\.", question
    ):
        return sympy.igcd(int(match[1]), int(match[2])) == int(answer)
    if match := re.fullmatch(r"Solve (.+) = (-?\d+) for (\w)\.", question):
        return sympy.sympify(match[1].replace(match[3], f"({answer})")) == int(match[2])
    if match := re.fullmatch(r"What is the derivative of (.+) with respect to (\w)\?", question):
        x = sympy.Symbol(match[2])
        names = {match[2]: x}
        return (
            sympy.expand(
                sympy.diff(sympy.sympify(match[1], names), x) - sympy.sympify(answer, names)
            )
            == 0
        )
    if match := re.fullmatch(r"What is next in (.+)\?", question):
        values = [int(value) for value in [*match[1].split(", "), answer]]
        for _ in range(3):
            values = [b - a for a, b in itertools.pairwise(values)]
        return set(values) == {0}  # a quadratic sequence has no third differences
    if match := re.fullmatch(r"Write (\d+) in base (\d+)\.", question):
        return int(answer, int(match[2])) == int(match[1]) and not answer.startswith("0")
    if match := re.fullmatch(r"Is (\d+) a prime number\?", question):
        return str(sympy.isprime(int(match[1]))) == answer
    raise AssertionError(f"the test does not know this question: {question}")


def test_generated_mathematics_is_right():
    documents = mathematics(seed=3)
    topics = Counter()
    for _ in range(60):
        lines = next(documents).splitlines()
        topics[re.sub(r"[-\d].*", "", lines[0])] += 1
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            assert answer_is_right(question, answer), (question, answer)
    assert len(topics) >= len(TOPICS) - 1


def test_generated_mathematics_follows_from_the_seed():
    first, again, other = (mathematics(seed) for seed in (0, 0, 1))
    for _ in range(5):
        document = next(first)
        assert document == next(again)
        assert document != next(other)


def test_pieces_lose_nothing_but_empty_lines_and_keep_indentation():
    code = "\n\n".join(f"def f{n}():\n    return {n}\n    # " + "x" * 30 for n in range(60))
    cut = list(pieces(code, limit=200))
    assert max(map(len, cut)) <= 200
    assert "\n\n".join(cut) == code
    lines = "\n".join("    indented" for _ in range(40))
    assert all(piece.startswith("    ") for piece in pieces(lines, limit=100))
    assert "".join(pieces("y" * 1000, limit=300)) == "y" * 1000
    assert list(pieces("\n \n")) == []
