"""Words of texts and queries as search compares them: folded, without those that say nothing, and by their stem."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["STOP_WORDS", "fold", "spans", "stem", "words"]

_WORD = re.compile(r"[^\W_]+")

STOP_WORDS = frozenset(
    _WORD.findall(
        "a about all an and any are as at be been but by can could did do does for from had has have how i if in into "
        "is it its just like make makes making may me more most my no not of on only or other our over so some such "
        "than that the their them then there these they this those to too under use used uses using very was we were "
        "what when where which while who whose why will with without would you your "
    )
)
"""Words of a query that are not searched for, unless there are no others."""

_STEPS_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEPS_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEPS_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize", "al", "er",
    "ic", "ou",
)  # fmt: skip


def fold(text: str) -> str:
    """Case and accents removed, compatibility forms spelled out."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def words(text: str) -> list[str]:
    """The folded words of a text, in order: runs of letters and digits, as the full text index cuts them."""
    return _WORD.findall(fold(text))


def spans(text: str) -> list[tuple[str, int, int]]:
    """The folded words of a text with where each begins and ends in it."""
    if text.isascii():
        return [(found[0], found.start(), found.end()) for found in _WORD.finditer(text.lower())]
    return [(fold(found[0]), found.start(), found.end()) for found in _WORD.finditer(text)]


def _pattern(word: str) -> str:
    """The word as consonants and vowels."""
    kinds = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and kinds.endswith("c"))
        kinds += "v" if vowel else "c"
    return kinds


def _measure(word: str) -> int:
    return _pattern(word).count("vc")


def _short(word: str) -> bool:
    """Whether it ends consonant, vowel, consonant, the last no w, x or y."""
    return _pattern(word).endswith("cvc") and word[-1] not in "wxy"


def _plain(word: str) -> str:
    """Steps 1a to 1c: plurals, -ed, -ing, -y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        word = word[:-1] if _measure(word[:-3]) > 0 else word
    else:
        cut = 2 if word.endswith("ed") else 3 if word.endswith("ing") else 0
        if cut and "v" in _pattern(word[:-cut]):
            word = word[:-cut]
            doubled = len(word) > 1 and word[-1] == word[-2] and _pattern(word)[-1] == "c"
            if word.endswith(("at", "bl", "iz")) or (not doubled and _measure(word) == 1 and _short(word)):
                word += "e"
            elif doubled and word[-1] not in "lsz":
                word = word[:-1]
    if word.endswith("y") and "v" in _pattern(word[:-1]):
        word = word[:-1] + "i"
    return word


def _replaced(word: str, endings: dict[str, str]) -> str:
    if not word.endswith(tuple(endings)):
        return word
    ending = max((e for e in endings if word.endswith(e)), key=len)
    kept = word[: -len(ending)]
    return kept + endings[ending] if _measure(kept) > 0 else word


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The stem of a folded English word by Porter's rules (Program 14, 1980): what SQLite's full text index keeps."""
    if len(word) < 3 or not word.isascii():
        return word
    word = _replaced(_replaced(_plain(word), _STEPS_2), _STEPS_3)
    ending = next((e for e in _STEPS_4 if word.endswith(e)), "")
    if ending:
        word = word[: -len(ending)] if _measure(word[: -len(ending)]) > 1 else word
    elif word.endswith(("sion", "tion")) and _measure(word[:-3]) > 1:
        word = word[:-3]
    if word.endswith("e") and (_measure(word[:-1]) > 1 or (_measure(word[:-1]) == 1 and not _short(word[:-1]))):
        word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word
