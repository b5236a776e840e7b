"""Words, their stems, and what a reader may have meant by one that is not there."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.terms import STOP_WORDS, fold, spans, stem, words
from paperworks.feed.vocabulary import UNINDEXED, Vocabulary, edits
from paperworks.feed.words import SCANNED, as_meant, as_typed
from paperworks.lab import registry

ALPHABET = "abcdez"


def known(*texts: str) -> Vocabulary:
    made = Vocabulary()
    made.add(texts, texts)
    return made


def test_words_are_folded_runs_of_letters_and_digits() -> None:
    assert words("AF-KAN's Naïve ﬁt: 3D_x") == ["af", "kan", "s", "naive", "fit", "3d", "x"]
    text = "Ein Über-Test (2×)"
    assert [(word, text[start:end]) for word, start, end in spans(text)] == [
        ("ein", "Ein"), ("uber", "Über"), ("test", "Test"), ("2", "2"),
    ]  # fmt: skip
    assert fold("ÀÉÎ") == "aei"


def test_stems_are_those_of_the_full_text_index() -> None:
    """Every word of the catalogue, beside SQLite's own tokenizer."""
    found = sorted({word for card in registry.catalogue() for word in words(f"{card.title} {card.summary}")})
    found += ["caresses", "ponies", "agreed", "plastered", "hopping", "falling", "filing", "happy", "sky", "relational"]
    found += ["conditional", "digitizer", "vietnamization", "sensibiliti", "triplicate", "electrical", "adjustable"]
    found += ["adoption", "controll", "roll", "probate", "rate", "generalizations", "oscillators", "feed", "bled"]
    index = sqlite3.connect(":memory:")
    index.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize = 'porter unicode61')")
    index.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
    index.executemany("INSERT INTO t (rowid, x) VALUES (?, ?)", list(enumerate(found)))
    wanted = dict(index.execute("SELECT doc, term FROM v"))
    assert {word: stem(word) for word in found} == {word: wanted[place] for place, word in enumerate(found)}


def reference(a: str, b: str) -> int:
    """Optimal string alignment, as its recursion says."""
    if not a or not b:
        return len(a) + len(b)
    best = min(reference(a[1:], b) + 1, reference(a, b[1:]) + 1, reference(a[1:], b[1:]) + (a[0] != b[0]))
    if len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0]:
        best = min(best, reference(a[2:], b[2:]) + 1)
    return best


@given(st.text(ALPHABET, max_size=5), st.text(ALPHABET, max_size=5), st.integers(0, 4))
def test_edits_are_optimal_string_alignment(a: str, b: str, most: int) -> None:
    assert edits(a, b, most) == min(reference(a, b), most + 1)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("activaton", ("activation",)),
        ("atcivation", ("activation",)),
        ("actvaton", ()),  # two edits in a word of eight letters
        ("activaiton", ("activation",)),
        ("interpretabilty", ("interpretability",)),
        ("interpertabilty", ("interpretability",)),
        ("swinfase", ("swinface",)),
        ("epma", ("epam",)),
        ("epan", ()),  # a replaced letter of a short word makes another one
        ("kna", ("kan",)),
        ("xqzw", ()),
        ("ab", ()),
        ("would", ()),
    ],
)
def test_corrections(typed: str, meant: tuple[str, ...]) -> None:
    vocabulary = known("activation interpretability", "SwinFace", "EPAM KAN could", "activation")
    assert vocabulary.correct(typed) == meant


def test_the_likelier_correction_comes_first() -> None:
    vocabulary = known("tumor", "tumour", "tumour")
    assert vocabulary.correct("tumuor") == ("tumour", "tumor")


def test_words_written_together_and_apart() -> None:
    vocabulary = known("AF-KAN edges", "MobileTL", "window attention")
    assert vocabulary.read(["afkan"])[0].meant == ("af", "kan")
    assert vocabulary.read(["afkann"])[0].meant == ("af", "kan")
    assert [r.meant for r in vocabulary.read(["mobile", "tl"])] == [("mobiletl",)] * 2
    assert vocabulary.read(["windowattention"])[0].meant == ("window", "attention")


def test_only_the_last_word_may_be_begun() -> None:
    vocabulary = known("gradients of activations", "gradual")
    assert vocabulary.read(["grad"])[0].begun == ("gradients", "gradual")
    assert vocabulary.read(["grad", "of"])[0].begun == ()
    assert vocabulary.read(["gradient"])[0].begun == ()  # a form of a known word


def test_words_that_come_later_are_known_at_once() -> None:
    vocabulary = known("first")
    assert vocabulary.correct("frist") == ("first",)
    vocabulary.add(["second"])
    assert vocabulary.correct("secnod") == ("second",)
    assert vocabulary.read(["seco"])[0].begun == ("second",)
    vocabulary.add([" ".join(f"w{number}x" for number in range(UNINDEXED + 1))])
    assert vocabulary.correct("secnod") == ("second",)
    assert vocabulary.read(["w1999"])[0].begun == ("w1999x",)


def terms(vocabulary: Vocabulary, text: str) -> list[tuple[str, bool]]:
    return [(t.word, t.prefix) for t in as_typed(vocabulary.read(words(text)), vocabulary)]


def test_words_that_say_nothing_are_left_out() -> None:
    vocabulary = known("the spiking net", "the spiking bird", "the spiking sea", "the rest")
    assert terms(vocabulary, "the bird of the sea") == [("bird", False), ("sea", True)]
    assert terms(vocabulary, "spiking birds") == [("birds", True)]  # most papers have it
    assert terms(vocabulary, "spiking") == [("spiking", True)]
    assert terms(vocabulary, "the") == [("the", True)]
    assert "the" in STOP_WORDS


def test_no_more_papers_are_ranked_than_the_limit() -> None:
    vocabulary = Vocabulary()
    vocabulary.add(["common rare"] * 10)
    vocabulary.add(["common"] * (SCANNED - 5))
    vocabulary.add(["other"] * (SCANNED + 10))
    assert [t for t, _ in terms(vocabulary, "common rare")] == ["rare"]
    assert [t for t, _ in terms(vocabulary, "common other")] == ["common"]


def test_nothing_is_read_differently_where_all_is_known() -> None:
    vocabulary = known("sparse activation")
    assert as_meant(vocabulary.read(["sparse", "activations"]), vocabulary) == []
    assert [t.word for t in as_meant(vocabulary.read(["sprase", "activations"]), vocabulary)] == [
        "sparse",
        "activations",
    ]


@given(st.lists(st.text(ALPHABET + "0", min_size=1, max_size=12), min_size=1, max_size=6))
def test_any_words_are_read(query: list[str]) -> None:
    vocabulary = known("abc abcd abe zed", "ace-bad", "cabbed")
    readings = vocabulary.read(query)
    assert [reading.word for reading in readings] == query
    for reading in readings:
        assert all(vocabulary.papers_with(word) for word in reading.begun)
