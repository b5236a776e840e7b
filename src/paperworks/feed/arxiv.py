"""What arXiv sends: Atom of its query interface, and OAI-PMH in the `arXiv` format."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from paperworks.feed.daily import utc_day
from paperworks.feed.records import PaperRecord, arxiv_id, plain_title
from paperworks.feed.skipped import Skipped, leaving_out

__all__ = ["parse_arxiv_atom", "parse_oai"]

_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV = "{http://arxiv.org/schemas/atom}"
_SEARCH = "{http://a9.com/-/spec/opensearch/1.1/}"
_OAI = "{http://www.openarchives.org/OAI/2.0/}"
_OAI_ARXIV = "{http://arxiv.org/OAI/arXiv/}"
_DECLARATION = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_NO_RECORDS = "noRecordsMatch"


def _root(xml: str | bytes, what: str) -> ElementTree.Element:
    """The root of a document without declarations, which is what an entity bomb needs."""
    if not isinstance(xml, str | bytes):
        raise TypeError(f"xml: got {type(xml).__name__}, wanted str or bytes")
    text = xml if isinstance(xml, str) else _decoded(xml)
    if _DECLARATION.search(text):
        raise ValueError(f"{what}: got XML with a document type or entity declaration, which is refused")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff")))
    except ElementTree.ParseError as error:
        raise ValueError(f"{what}: got malformed XML: {error}") from None


def _decoded(xml: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if xml.startswith(mark):
            return xml.decode(encoding, errors="replace")
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']", xml)
    try:
        return xml.decode(declared[1].decode() if declared else "utf-8", errors="replace")
    except LookupError:
        raise ValueError(f"xml: got the unknown encoding {declared[1]!r}") from None  # type: ignore[index]


def _text(element: ElementTree.Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())


def parse_arxiv_atom(xml: str | bytes, skipped: list[Skipped] | None = None) -> tuple[list[PaperRecord], int]:
    """The records of one answer of arXiv's query interface, and how many there are in all.

    An entry without an arXiv id or a title is left out, and told of in `skipped`.

    Raises:
        ValueError: malformed XML, a document type or entity declaration, no feed, or arXiv's own error, in its words.
    """
    feed = _root(xml, "arXiv feed")
    if feed.tag != f"{_ATOM}feed":
        raise ValueError(f"arXiv feed: got the root element {feed.tag!r}, wanted an Atom feed")
    records = []
    for place, entry in enumerate(feed.iterfind(f"{_ATOM}entry"), 1):
        title = _text(entry, f"{_ATOM}title")
        address = _text(entry, f"{_ATOM}id")
        if (title == "Error" and "/api/errors" in address) or (title == "Error" and "abs/" not in address):
            raise ValueError(f"arXiv: {_text(entry, f'{_ATOM}summary') or 'an error without a text'}")
        with leaving_out(f"entry {place} ({title or address})", skipped):
            records.append(_entry(entry, title, address))
    total = _text(feed, f"{_SEARCH}totalResults")
    return records, int(total) if total.isdecimal() else len(records)


def _entry(entry: ElementTree.Element, title: str, address: str) -> PaperRecord:
    id, version = arxiv_id(address)
    primary = entry.find(f"{_ARXIV}primary_category")
    terms = [c.get("term", "") for c in entry.iterfind(f"{_ATOM}category")]
    if primary is not None:
        terms.insert(0, primary.get("term", ""))
    authors = [_text(author, f"{_ATOM}name") for author in entry.iterfind(f"{_ATOM}author")]
    return PaperRecord(
        plain_title(title),
        id=id,
        version=version,
        abstract=_text(entry, f"{_ATOM}summary"),
        authors=[name for name in authors if name] or None,
        published=utc_day(_text(entry, f"{_ATOM}published")),
        updated=utc_day(_text(entry, f"{_ATOM}updated")),
        categories=list(dict.fromkeys(term for term in terms if term)),
        doi=_text(entry, f"{_ARXIV}doi") or None,
        note=_text(entry, f"{_ARXIV}comment") or None,
        url=f"https://arxiv.org/abs/{id}",
        source="arxiv",
    )


def parse_oai(xml: str | bytes, skipped: list[Skipped] | None = None) -> tuple[list[PaperRecord], str | None]:
    """The records of one OAI-PMH answer in the `arXiv` format, and the token of the next, None at the end.

    Deleted records are left out, and those without an arXiv id or a title, which are told of in `skipped`. The
    datestamp is the day of the last change of the record, not of the paper, and is not used.

    Raises:
        ValueError: malformed XML, a document type or entity declaration, no OAI-PMH answer, or its own error, other
            than that nothing matches.
    """
    root = _root(xml, "OAI-PMH")
    if root.tag != f"{_OAI}OAI-PMH":
        raise ValueError(f"OAI-PMH: got the root element {root.tag!r}, wanted an OAI-PMH answer")
    error = root.find(f"{_OAI}error")
    if error is not None and error.get("code") != _NO_RECORDS:
        raise ValueError(f"OAI-PMH: {error.get('code', 'error')}: {(error.text or '').strip()}")
    records = []
    for place, element in enumerate(root.iter(f"{_OAI}record"), 1):
        header = element.find(f"{_OAI}header")
        if header is not None and header.get("status") == "deleted":
            continue
        with leaving_out(f"record {place} ({_text(element, f'{_OAI}header/{_OAI}identifier')})", skipped):
            paper = element.find(f"{_OAI}metadata/{_OAI_ARXIV}arXiv")
            if paper is None:
                raise ValueError("OAI-PMH: got a record without metadata in the arXiv format")
            records.append(_oai_record(paper))
    token = " ".join((root.findtext(f".//{_OAI}resumptionToken") or "").split())
    return records, token or None


def _oai_record(paper: ElementTree.Element) -> PaperRecord:
    def text(name: str) -> str:
        return _text(paper, f"{_OAI_ARXIV}{name}")

    id, version = arxiv_id(text("id"))
    authors = []
    for author in paper.iterfind(f"{_OAI_ARXIV}authors/{_OAI_ARXIV}author"):
        parts = (_text(author, f"{_OAI_ARXIV}{part}") for part in ("forenames", "keyname", "suffix"))
        authors.append(" ".join(part for part in parts if part))
    return PaperRecord(
        plain_title(text("title")),
        id=id,
        version=version,
        abstract=text("abstract"),
        authors=[name for name in authors if name] or None,
        published=utc_day(text("created")),
        updated=utc_day(text("updated")),
        categories=text("categories").split(),
        doi=text("doi") or None,
        note=text("comments") or None,
        url=f"https://arxiv.org/abs/{id}",
        source="oai",
    )
