"""One paper as the catalogue knows it, whatever source it came from, and how two accounts of it become one."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from datetime import date
from typing import Any

__all__ = [
    "PaperRecord",
    "arxiv_id",
    "from_mapping",
    "merge",
    "normalised_title",
    "plain_title",
    "provenance",
    "title_key",
    "to_mapping",
]

_NEW_ID = r"\d{4}\.\d{4,5}"
_OLD_ID = r"[a-z][a-z-]+(?:\.[A-Z]{2})?/\d{7}"
_ARXIV = re.compile(
    rf"(?:(?:https?://)?(?:[\w-]+\.)*arxiv\.org/(?:abs|pdf|html)/|oai:arxiv\.org:|arxiv:\s*)?"
    rf"({_NEW_ID}|{_OLD_ID})(?:v(\d+))?(?:\.pdf)?/?",
    re.IGNORECASE | re.ASCII,
)


def arxiv_id(text: str) -> tuple[str, int | None]:
    """The arXiv id without its version, and the version or None, of an id or an address of arXiv.

    ``2408.05421v2`` -> ``("2408.05421", 2)``; the ids of before April 2007 (``cs/0501001``) are understood too.
    Raises ValueError for anything else.
    """
    match = _ARXIV.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"arXiv id: got {text[:100]!r}, wanted one such as 2408.05421v2 or cs/0501001")
    return match[1], int(match[2]) if match[2] else None


_LATEX_WORDS = {
    "times": "×", "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "lambda": "λ", "mu": "μ",
    "pi": "π", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω", "infty": "∞", "ell": "ℓ",
    "textendash": "–", "textemdash": "—", "sim": "~", "cdot": "·", "rightarrow": "→", "to": "→", "ldots": "…",
}  # fmt: skip
_WITH_ARGUMENT = re.compile(r"\\(?:text\w*|emph|math\w+|operatorname|mbox|rm|bf|it|tt)\s*\{([^{}]*)\}")


def plain_title(text: str) -> str:
    """A title as text: white space made single, LaTeX of titles (``$2{\\times}$``, ``100\\%``, ``A~B``) spelled out.

    A dollar sign is one of mathematics where TeX's users would pair it: ``$x^2$`` loses them, ``$5 to $6`` does not.
    """
    text = re.sub(r"(?<!\\)~", " ", text)
    while (found := _WITH_ARGUMENT.sub(r"\1", text)) != text:
        text = found
    text = re.sub(r"\{\\?times\}", "×", text)
    text = re.sub(r"\\([A-Za-z]+)\b\s?", lambda m: _LATEX_WORDS.get(m[1], m[0]), text)
    text = re.sub(r"\\([%&_#$])", "\0\\1", text)
    text = re.sub(r"(?<!\0)\$(?=\S)([^$]*[^$\s\0])\$(?!\d)", r"\1", text).replace("\0", "")
    text = re.sub(r"\{([^{}]*)\}", r"\1", text)
    return " ".join(text.split())


def normalised_title(title: str) -> str:
    """Letters and digits of a title, case and accents folded: equal for two spellings of one title."""
    folded = unicodedata.normalize("NFKD", plain_title(title)).casefold()
    return "".join(c for c in folded if c.isalnum())


def title_key(title: str) -> str:
    """The id of a record that has no arXiv id: a digest of its normalised title."""
    return "title-" + hashlib.sha256(normalised_title(title).encode()).hexdigest()[:16]


LARGEST = 2**31 - 1
"""A count that every database can hold."""


@dataclass
class PaperRecord:
    """What is known of a paper. None is "not known", also for counts: 0 is a count.

    Attributes:
        title: as plain text.
        id: arXiv id without version; None where it is not known.
        abstract: of the source; data that a user ingested.
        authors: names in order; empty where only their number is known.
        n_authors: number of authors.
        published: day of the paper's first version (UTC).
        first_seen: day on which it entered the feed (UTC), which is another.
        updated: day of the latest version.
        upvotes, comments: counts of the source.
        rank: place in its day's list, from 0.
        code, project_page, url, thumbnail: addresses.
        version: latest arXiv version seen.
        categories: arXiv's, the primary one first. keywords: of the source.
        doi, note: of arXiv (`note` is its "comment" field).
        submitted_by, organization: as the daily list names them.
        card, area, summary: of the catalogue's card: its id, its area, and the summary in our own words.
        source: name of the source of this record.
        provenance: source by field, for a record made of several.
    """

    title: str
    _: KW_ONLY
    id: str | None = None
    abstract: str = ""
    authors: list[str] | None = None
    n_authors: int | None = None
    published: date | None = None
    first_seen: date | None = None
    updated: date | None = None
    upvotes: int | None = None
    comments: int | None = None
    rank: int | None = None
    code: str | None = None
    project_page: str | None = None
    url: str | None = None
    thumbnail: str | None = None
    version: int | None = None
    categories: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    doi: str | None = None
    note: str | None = None
    submitted_by: str | None = None
    organization: str | None = None
    card: str | None = None
    area: str | None = None
    summary: str = ""
    source: str = ""
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not normalised_title(self.title):
            raise ValueError(f"title: got {self.title!r}, wanted a text with letters or digits")
        if self.id is not None:
            self.id, version = arxiv_id(self.id)
            self.version = self.version if version is None else version
        if self.authors is not None and self.n_authors is None:
            self.n_authors = len(self.authors)
        for name in ("n_authors", "upvotes", "comments", "rank", "version"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
                raise ValueError(f"{name}: got {str(value)[:40]}, wanted a whole number from 0 to {LARGEST}, or None")

    @property
    def key(self) -> str:
        """The arXiv id, or where there is none the id made from the title."""
        return self.id or title_key(self.title)


_OF_THE_PAPER = (
    "title", "abstract", "authors", "n_authors", "published", "updated", "version", "categories", "doi", "note",
)  # fmt: skip
_SOURCES_OF_THE_PAPER = ("arxiv", "oai", "daily", "paper", "search", "page", "card", "")
_SOURCES_OF_THE_FEED = ("daily", "paper", "search", "page", "card", "arxiv", "oai", "")
_NOT_MERGED = ("id", "source", "provenance")


def _place(name: str, source: str) -> int:
    order = _SOURCES_OF_THE_PAPER if name in _OF_THE_PAPER else _SOURCES_OF_THE_FEED
    return order.index(source) if source in order else len(order)


def _known(value: Any) -> bool:
    return value is not None and value != "" and value != []


def merge(old: PaperRecord, new: PaperRecord) -> PaperRecord:
    """One record of two accounts of a paper, with the source of every field in `provenance`.

    arXiv is believed about the paper itself, the daily list about dates and counts of the feed; within one source the
    newer account, except that an older version of a paper never replaces what is known of a later one. What one
    account does not know never removes what the other does. The arXiv id of either is kept.

    Raises ValueError where the two have different arXiv ids.
    """
    if old.id and new.id and old.id != new.id:
        raise ValueError(f"merge: got {old.id} and {new.id}, wanted two accounts of one paper")
    before = provenance(old)
    values: dict[str, Any] = {"id": old.id or new.id, "source": old.source or new.source}
    origin = dict(before)
    outdated = old.version is not None and new.version is not None and new.version < old.version
    new_origin = provenance(new)
    for item in fields(PaperRecord):
        name = item.name
        if name in _NOT_MERGED:
            continue
        mine, theirs = getattr(old, name), getattr(new, name)
        source = new_origin.get(name, new.source)
        believed = _place(name, source) <= _place(name, before.get(name, old.source))
        if outdated and name in _OF_THE_PAPER:
            believed = False
        if name == "version" and mine is not None and theirs is not None:
            believed = theirs >= mine
        if _known(theirs) and (believed or not _known(mine)):
            values[name], origin[name] = theirs, source
        else:
            values[name] = mine
    return replace(old, **values, provenance=origin)


def provenance(record: PaperRecord) -> dict[str, str]:
    """The source of each field that is known."""
    known = [f.name for f in fields(record) if f.name not in _NOT_MERGED and _known(getattr(record, f.name))]
    return {name: record.provenance.get(name, record.source) for name in known}


def to_mapping(record: PaperRecord) -> dict[str, Any]:
    """What is known of the record as plain data, dates as ISO text; the inverse of `from_mapping`."""
    known = {f.name: getattr(record, f.name) for f in fields(record) if _known(getattr(record, f.name))}
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in known.items()}


def from_mapping(values: Mapping[str, Any]) -> PaperRecord:
    """The record that `to_mapping` was given."""
    dates = {
        name: date.fromisoformat(values[name]) for name in ("published", "first_seen", "updated") if values.get(name)
    }
    return PaperRecord(**{**values, **dates})
