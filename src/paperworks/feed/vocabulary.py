"""The words of the catalogue, and what a reader may have meant by a word that is not among them.

Spelling: candidates share character n-grams with the word (an inverted index, n = 2 with the ends marked), and the few
that share most are compared by edits: a letter added, left out, replaced, or two neighbours swapped (optimal string
alignment). Needs no extension of the database.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from paperworks.feed.terms import STOP_WORDS, fold, stem, words

__all__ = ["Reading", "Vocabulary", "edits"]

COMPARED = 60
"""Candidates that are compared by edits."""

UNINDEXED = 2000
"""Words beyond the n-gram index and the sorted list that are looked at one by one, before both are made anew."""

SHORT = 5
"""Letters up to which a replaced letter makes another word."""

LONGEST = 40
"""Letters of a word that is kept: what is longer is an address or a formula."""

_HYPHENATED = re.compile(r"[^\W_]+(?:[-–/.][^\W_]+)+")


def edits(a: str, b: str, most: int) -> int:
    """Edits from `a` to `b` (optimal string alignment); `most` + 1 where there are more than `most`."""
    if abs(len(a) - len(b)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1] if row[-1] <= most else most + 1


def allowed_edits(word: str) -> int:
    """How many edits a word of this length may be away from what was meant."""
    return 0 if len(word) < 3 or word in STOP_WORDS else 1 if len(word) < 9 else 2


def _another(word: str, other: str) -> bool:
    """Whether a short word has a letter replaced: that is more often another word than a wrong one."""
    return len(word) <= SHORT and len(word) == len(other) and sorted(word) != sorted(other)


@dataclass(frozen=True)
class Reading:
    """One word of a query: itself, words of the catalogue that it begins, and words that may have been meant."""

    word: str
    known: bool
    begun: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()


class Vocabulary:
    """Words with the number of papers that have them. Reading threads may share it; one at a time adds."""

    def __init__(self) -> None:
        self.papers = 0
        self._words: Counter[str] = Counter()
        self._forms: dict[str, list[str]] = {}  # by stem
        self._joined: dict[str, tuple[str, ...]] = {}
        self._list: list[str] = []  # words and joined ones in the order met
        self._seen = 0  # of `_words`
        self._lock = threading.Lock()
        self._indexed: tuple[int, list[str], _Ngrams] | None = None

    def __len__(self) -> int:
        return len(self._words)

    def add(self, texts: Iterable[str], names: Iterable[str] = ()) -> None:
        """Count the words of papers; what is written with hyphens in `names` is also known as one word."""
        for text in texts:
            self._words.update(set(words(text)))
            self.papers += 1
        new = [word for word in islice(self._words, self._seen, None) if len(word) <= LONGEST]
        self._seen = len(self._words)
        for word in new:
            self._forms.setdefault(stem(word), []).append(word)
        self._list += [word for word in new if word not in self._joined]
        for name in names:
            for match in _HYPHENATED.finditer(fold(name)):
                parts = tuple(words(match[0]))
                joined = "".join(parts)
                if len(joined) <= LONGEST and joined not in self._joined:
                    self._joined[joined] = parts
                    if joined not in self._words:
                        self._list.append(joined)

    def papers_with(self, word: str) -> int:
        """At most so many papers have the word in any of its forms."""
        return min(self.papers, sum(self._words[form] for form in self._forms.get(stem(word), ())))

    def papers_begun(self, prefix: str) -> int:
        """At most so many papers have a word with this beginning."""
        return sum(self._words[word] for word in self._beginning(prefix))

    def read(self, query: Sequence[str]) -> list[Reading]:
        """What each word of a query says. Only the last may be the beginning of a word."""
        pairs = [a + b for a, b in pairwise(query)]
        named = [pair if pair in self._words else "" for pair in pairs]
        readings = []
        for place, word in enumerate(query):
            last = place == len(query) - 1
            begun = self._complete(word) if last and len(word) > 1 and not self.papers_with(word) else ()
            known = bool(self.papers_with(word) or begun)
            written_apart = [pair for pair in named[max(0, place - 1) : place + 1] if pair]
            meant = (*self._joined.get(word, ()), *written_apart)
            if meant and known:
                meant = (word, *meant)
            if not meant and not known:
                meant = self._split(word) or self.correct(word)
            readings.append(Reading(word, known, begun, meant))
        return readings

    def _complete(self, prefix: str, limit: int = 8) -> tuple[str, ...]:
        found = sorted(self._beginning(prefix), key=lambda word: (-self._words[word], word))
        return tuple(word for word in found if word in self._words)[:limit]

    def _split(self, word: str) -> tuple[str, ...]:
        """The two known words that this one is made of, the least of which is as frequent as can be."""
        cuts = [(word[:i], word[i:]) for i in range(3, len(word) - 2)]
        telling = [(a, b) for a, b in cuts if a not in STOP_WORDS and b not in STOP_WORDS]
        common = [(min(self._words[a], self._words[b]), a, b) for a, b in telling]
        best = max(common, default=(0, "", ""))
        return best[1:] if best[0] else ()

    def correct(self, word: str, limit: int = 3) -> tuple[str, ...]:
        """The known words that are fewest edits away, the likelier first; joined ones as their parts."""
        most = allowed_edits(word)
        if not most or len(word) > LONGEST:
            return ()
        size, _, ngrams = self._index()
        candidates = [self._list[i] for i in ngrams.nearest(word)]
        candidates += [other for other in self._list[size:] if abs(len(other) - len(word)) <= most]
        found = []
        for other in candidates:
            away = edits(word, other, most)
            if away <= most and not _another(word, other):
                frequent = self._words[other]
                found.append((away, other[0] != word[0], -frequent, other))
        fewest = min(found, default=(0, False, 0, ""))[0]
        best = [other for away, _, _, other in sorted(found) if away == fewest][:limit]
        return tuple(dict.fromkeys(part for other in best for part in self._joined.get(other, (other,))))

    def _index(self) -> tuple[int, list[str], _Ngrams]:
        """How many words of the list are sorted and in the n-gram index, and both."""
        with self._lock:
            if self._indexed is None or len(self._list) - self._indexed[0] > UNINDEXED:
                known = self._list[:]
                self._indexed = (len(known), sorted(known), _Ngrams(known))
            return self._indexed

    def _beginning(self, prefix: str) -> Iterator[str]:
        size, ordered, _ = self._index()
        for place in range(bisect_left(ordered, prefix), len(ordered)):
            if not ordered[place].startswith(prefix):
                break
            yield ordered[place]
        yield from (word for word in self._list[size:] if word.startswith(prefix))


def _ngrams(word: str) -> set[str]:
    marked = f"^{word}$"
    return {marked[i : i + 2] for i in range(len(marked) - 1)}


class _Ngrams:
    """For each n-gram the words that have it, as one array of places with where each n-gram's part begins."""

    def __init__(self, known: Iterable[str]) -> None:
        places: dict[str, list[int]] = {}
        sizes = []
        for place, word in enumerate(known):
            found = _ngrams(word)
            sizes.append(len(found))
            for gram in found:
                places.setdefault(gram, []).append(place)
        self.places: dict[str, NDArray[np.int32]] = {g: np.array(p, np.int32) for g, p in places.items()}
        self.sizes = np.array(sizes, np.float32)

    def nearest(self, word: str) -> list[int]:
        """The places of the words that share most with this one (Dice's coefficient)."""
        found = _ngrams(word)
        lists = [self.places[gram] for gram in found if gram in self.places]
        if not lists:
            return []
        shared = np.bincount(np.concatenate(lists), minlength=len(self.sizes)).astype(np.float32)
        dice = 2 * shared / (self.sizes + len(found))
        count = min(COMPARED, len(dice))
        best = np.argpartition(-dice, count - 1)[:count]
        return [int(place) for place in best[dice[best] > 0]]
