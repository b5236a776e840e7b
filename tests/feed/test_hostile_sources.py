"""What sources send that is malformed or hostile: refused with a reason, or the one record left out."""

from __future__ import annotations

from typing import Any

import pytest

from paperworks.feed import parse_arxiv_atom, parse_daily_papers, parse_oai

ATOM = '<feed xmlns="http://www.w3.org/2005/Atom">{}</feed>'
ENTRY = "<entry><id>http://arxiv.org/abs/2601.0000{n}v1</id><title>Title {n}</title></entry>"
LAUGHS = "<!DOCTYPE f [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9)
) + "]><feed xmlns='http://www.w3.org/2005/Atom'><title>&j;</title></feed>"  # fmt: skip
BAD_XML = {
    "a bomb": LAUGHS,
    "a file": "<!DOCTYPE f [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><feed xmlns='http://www.w3.org/2005/Atom'>&x;</feed>",
    "a bomb in another case": LAUGHS.replace("DOCTYPE", "doctype").replace("ENTITY", "entity"),
    "a bomb in UTF-16": LAUGHS.encode("utf-16"),
    "a bomb behind a declaration": b"<?xml version='1.0' encoding='utf-8'?>\n" + LAUGHS.encode(),
    "a parameter entity": "<!DOCTYPE f [<!ENTITY % p SYSTEM 'http://127.0.0.1:9/x'> %p;]><feed/>",
    "not closed": "<feed xmlns='http://www.w3.org/2005/Atom'><entry>",
    "no XML": "\x00\x01\x02", "nothing": "", "HTML": "<html><body>503 Service Unavailable</body></html>",
    "an unknown encoding": b"<?xml version='1.0' encoding='klingon'?><feed/>",
    "an unknown entity": ATOM.format("&nbsp;"),
}  # fmt: skip


@pytest.mark.parametrize("xml", BAD_XML.values(), ids=BAD_XML)
@pytest.mark.parametrize("parse", [parse_arxiv_atom, parse_oai])
def test_bad_xml_is_refused(parse: Any, xml: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"XML|xml|root element|malformed"):
        parse(xml)


def test_deeply_nested_xml_is_read_like_any_other() -> None:
    deep = ATOM.format("<a>" * 200_000 + "</a>" * 200_000)
    assert parse_arxiv_atom(deep)[0] == []


@pytest.mark.parametrize(
    "bad",
    [
        "<entry><id>no id</id><title>x</title></entry>",
        "<entry><title>no id at all</title></entry>",
        "<entry><id>http://arxiv.org/abs/2601.00009v1</id><title>   </title></entry>",
        "<entry/>",
        "<entry><id>http://arxiv.org/abs/2601.00009v1</id><title>\u2026 \u2014</title></entry>",
    ],
)
def test_an_entry_that_is_no_paper_costs_no_other(bad: str) -> None:
    records, _ = parse_arxiv_atom(ATOM.format(ENTRY.format(n=1) + bad + ENTRY.format(n=2)))
    assert [record.id for record in records] == ["2601.00001", "2601.00002"]


GOOD = [
    {"paper": {"id": f"2601.0000{n}", "title": f"Title {n}", "publishedAt": "2026-01-02T00:00:00Z"}} for n in (1, 2)
]
BAD_ITEMS: list[Any] = [
    None, 3, "x", [], {}, {"paper": None}, {"paper": {"title": ""}}, {"paper": {"title": "\u200b…"}},
    {"paper": {"title": 7}},
    {"paper": {"id": "2601.00003", "title": ["a", "list"]}},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_an_item_that_is_no_paper_costs_no_other(bad: Any) -> None:
    assert [record.id for record in parse_daily_papers([GOOD[0], bad, GOOD[1]])] == ["2601.00001", "2601.00002"]


@pytest.mark.parametrize(
    "values",
    [
        {"publishedAt": "yesterday"}, {"publishedAt": 20260102}, {"publishedAt": "2026-13-45T99:00:00Z"},
        {"upvotes": -3}, {"upvotes": "many"}, {"upvotes": 1e400}, {"authors": "A. Author"},
        {"authors": [None, 3, {"name": None}]},
        {"githubRepo": "javascript:alert(1)"}, {"summary": {"a": 1}}, {"id": "../../etc/passwd"}, {"id": 5},
    ],
)  # fmt: skip
def test_a_field_that_makes_no_sense_is_not_known(values: dict[str, Any]) -> None:
    [record] = parse_daily_papers([{"paper": {"id": "2601.00001", "title": "Title", **values}}])
    assert record.title == "Title"
    assert record.upvotes is None
    assert record.published is None
    assert record.code is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"<html>", b'{"error": "Invalid date"}', b"3"]
)
def test_json_that_is_no_list(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"daily papers|source"):
        parse_daily_papers(text)
