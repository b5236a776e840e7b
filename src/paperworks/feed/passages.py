"""Why a paper was found: the sentence that shows it, where the words of the query stand in it, and one plain line."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paperworks.feed.meaning import Embedder
from paperworks.feed.records import PaperRecord
from paperworks.feed.terms import spans, stem
from paperworks.feed.vocabulary import Reading, Vocabulary
from paperworks.feed.words import Term

__all__ = ["Asked", "Passage", "Sentences", "sentences"]

LONGEST = 280
"""Characters of a snippet."""

QUOTED = 160
"""Characters of the nearest sentence in the line that says why."""

MOST_SENTENCES = 40
"""Of one paper that are compared with a query."""

_END = re.compile(r"(?<=[.!?])\s+(?=[^\W_])|\n+")


def sentences(record: PaperRecord) -> list[str]:
    """The sentences of the summary and the abstract, or the title where there is neither."""
    text = "\n".join(filter(None, (record.summary, record.abstract)))
    found = [" ".join(part.split()) for part in _END.split(text)]
    return [part for part in found if part][:MOST_SENTENCES] or [record.title]


def shortened(text: str, length: int, around: int = 0) -> str:
    """At most `length` characters of a text, cut between words, with the place `around` among them."""
    if len(text) <= length:
        return text
    start = max(0, min(around - length // 3, len(text) - length + 1))
    start = text.rfind(" ", 0, start) + 1 if start else 0
    end = start + length - 2
    if end < len(text):
        end = max(text.rfind(" ", start + 1, end), start + length // 2)
    return "…" * (start > 0) + text[start:end].strip() + "…" * (end < len(text))


class Passage(NamedTuple):
    """The sentence that shows why a paper was found, what to mark in it as (start, end), and why in one line."""

    snippet: str
    marks: tuple[tuple[int, int], ...]
    why: str


class Asked:
    """The words that a query looks for, in all their readings, with how rare each is."""

    def __init__(self, readings: Sequence[Reading], terms: Iterable[Term], vocabulary: Vocabulary) -> None:
        self.readings = readings
        self.weights: dict[str, float] = {}
        self.beginnings: list[tuple[str, str]] = []
        for term in terms:
            root = stem(term.word)
            self.weights[root] = math.log(1 + (vocabulary.papers + 1) / (term.papers + 0.5))
            if term.prefix:
                self.beginnings += [(term.word, root), (root, root)]
        self._matched: dict[str, str | None] = {}

    def root(self, word: str) -> str | None:
        """The stem of what is asked for that a word is a form of, or None."""
        if word not in self._matched:
            own = stem(word)
            begun = (root for start, root in self.beginnings if word.startswith(start) or own.startswith(start))
            self._matched[word] = own if own in self.weights else next(begun, None)
        return self._matched[word]

    def explain(
        self, record: PaperRecord, parts: Mapping[str, float], told: Sequence[str], near: Sequence[float]
    ) -> Passage:
        """Why a paper was found.

        Args:
            record: the paper.
            parts: what each list added.
            told: its sentences.
            near: how near each of them is to the query in meaning, where that was a reason; else none.
        """
        roots = [[(self.root(word), word, start, end) for word, start, end in spans(sentence)] for sentence in told]
        weights = [sum(self.weights[root] for root in {root for root, *_ in row} if root) for row in roots]
        nearest = None
        if near and max(near) > 0:  # of two as near, the one that has the words
            nearest = max(range(len(told)), key=lambda place: (round(near[place], 2), weights[place], -place))
        best = max(range(len(told)), key=lambda place: (weights[place], -place))
        if not weights[best] and nearest is not None:
            best = nearest
        snippet = shortened(told[best], LONGEST, next((start for root, _, start, _ in roots[best] if root), 0))
        marks = tuple((start, end) for word, start, end in spans(snippet) if self.root(word))
        sentence = None if nearest is None else told[nearest]
        return Passage(snippet, marks, self._why(record, parts, sentence, [one[:2] for row in roots for one in row]))

    def _why(
        self, record: PaperRecord, parts: Mapping[str, float], nearest: str | None, told: list[tuple[str | None, str]]
    ) -> str:
        said = []
        if "words" in parts or "typos" in parts:
            names = " ".join([record.title, *record.keywords, *record.categories, *(record.authors or [])])
            shown: dict[str | None, str] = {}
            for root, word in [*((self.root(word), word) for word, _, _ in spans(names)), *told]:
                shown.setdefault(root, word)
            said.append("words: " + ", ".join(shown[root] for root in self.weights if root in shown))
        if "typos" in parts:
            said.append("read " + ", ".join(f"{r.word} as {' '.join(r.meant)}" for r in self.readings if r.meant))
        if "meaning" in parts and nearest is not None:
            said.append(f"nearest sentence: {shortened(nearest, QUOTED)}")
        return "; ".join(said)


class Sentences:
    """Vectors of sentences, the latest used kept: what the reader of one page sees again on the next costs nothing."""

    def __init__(self, most: int = 4000) -> None:
        self.most = most
        self._kept: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def near(self, embedder: Embedder, query: NDArray[np.float32], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """How near each sentence of each list is to the query's vector."""
        asked = list(dict.fromkeys(sentence for text in texts for sentence in text))
        with self._lock:
            known = {s: self._kept[embedder.name, s] for s in asked if (embedder.name, s) in self._kept}
        if missing := [sentence for sentence in asked if sentence not in known]:
            known |= zip(missing, embedder.embed(missing), strict=True)
        with self._lock:
            for sentence in asked:
                self._kept[embedder.name, sentence] = known[sentence]
                self._kept.move_to_end((embedder.name, sentence))
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return [[float(known[sentence] @ query) for sentence in text] for text in texts]
