"""Atom and OAI-PMH of arXiv: versions, dates, errors, and documents that are refused."""

from __future__ import annotations

import re
from datetime import date

import pytest

from paperworks.feed.arxiv import parse_arxiv_atom, parse_oai
from paperworks.feed.skipped import Skipped

ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">
<opensearch:totalResults>{total}</opensearch:totalResults>{entries}</feed>"""
ENTRY = """<entry><id>http://arxiv.org/abs/2408.05421v2</id><updated>2024-09-01T10:00:00Z</updated>
<published>2024-08-09T17:59:59Z</published><title>Learning to
  Fly with $2{\\times}$ Wings</title><summary>  We study &lt;wings&gt;.
</summary><author><name>Ada L.</name></author><author><name>Bo M.</name></author>
<arxiv:doi xmlns:arxiv="http://arxiv.org/schemas/atom">10.1/x</arxiv:doi>
<arxiv:comment xmlns:arxiv="http://arxiv.org/schemas/atom">9 pages</arxiv:comment>
<arxiv:primary_category xmlns:arxiv="http://arxiv.org/schemas/atom" term="cs.LG"/>
<category term="cs.AI"/><category term="cs.LG"/></entry>"""
ERROR = """<entry><id>http://arxiv.org/api/errors#incorrect_id_format</id><title>Error</title>
<summary>incorrect id format for 1234</summary></entry>"""


def test_an_entry_becomes_a_record_with_its_version_apart() -> None:
    for xml in (ATOM.format(total=73, entries=ENTRY), ATOM.format(total=73, entries=ENTRY).encode()):
        (record,), total = parse_arxiv_atom(xml)
        assert total == 73
        assert (record.id, record.version) == ("2408.05421", 2)
        assert (record.title, record.abstract) == ("Learning to Fly with 2× Wings", "We study <wings>.")
        assert (record.published, record.updated, record.first_seen) == (date(2024, 8, 9), date(2024, 9, 1), None)
        assert record.categories == ["cs.LG", "cs.AI"]
        assert (record.doi, record.note, record.authors) == ("10.1/x", "9 pages", ["Ada L.", "Bo M."])


def test_nothing_found_is_an_empty_list_and_an_error_is_raised_in_its_words() -> None:
    assert parse_arxiv_atom(ATOM.format(total=0, entries="")) == ([], 0)
    with pytest.raises(ValueError, match="incorrect id format for 1234"):
        parse_arxiv_atom(ATOM.format(total=1, entries=ERROR))
    paper = ENTRY.replace("Learning to\n  Fly with $2{\\times}$ Wings", "Error")
    assert parse_arxiv_atom(ATOM.format(total=1, entries=paper))[0][0].title == "Error", "a paper of that title"


def test_an_entry_without_an_id_is_left_out() -> None:
    broken = ENTRY.replace("http://arxiv.org/abs/2408.05421v2", "urn:nothing")
    assert len(parse_arxiv_atom(ATOM.format(total=2, entries=broken + ENTRY))[0]) == 1


BOMB = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;">]><feed>&b;</feed>'


@pytest.mark.parametrize("parse", [parse_arxiv_atom, parse_oai])
def test_declarations_malformed_and_foreign_documents_are_refused(parse: object) -> None:
    assert callable(parse)
    for xml in (BOMB, BOMB.encode(), BOMB.encode("utf-16"), BOMB.replace("DOCTYPE", "doctype")):
        with pytest.raises(ValueError, match="refused"):
            parse(xml)
    for xml, said in (("<feed", "malformed"), ("<html/>", "root element"), ("", "malformed")):
        with pytest.raises(ValueError, match=said):
            parse(xml)
    with pytest.raises(TypeError, match="xml: got NoneType"):
        parse(None)
    with pytest.raises(ValueError, match="encoding"):
        parse(b'<?xml version="1.0" encoding="no-such"?><feed/>')


OAI = """<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><responseDate>2026-01-01T00:00:00Z</responseDate>{}
</OAI-PMH>"""
RECORD = """<record><header{status}><identifier>oai:arXiv.org:2408.05421</identifier><datestamp>2026-01-01</datestamp>
</header>{metadata}</record>"""
METADATA = """<metadata><arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>2408.05421</id><created>2024-08-09</created>
<authors><author><keyname>L.</keyname><forenames>Ada</forenames></author></authors><title>Learning to Fly</title>
<categories>cs.LG cs.AI</categories><abstract> We study wings. </abstract></arXiv></metadata>"""


def test_oai_records_deletions_and_the_token() -> None:
    alive, deleted = RECORD.format(status="", metadata=METADATA), RECORD.format(status=' status="deleted"', metadata="")
    token = '<resumptionToken cursor="0" completeListSize="2"> abc|1 </resumptionToken>'
    (record,), following = parse_oai(OAI.format(f"<ListRecords>{alive}{deleted}{token}</ListRecords>"))
    assert following == "abc|1"
    assert (record.id, record.authors, record.published) == ("2408.05421", ["Ada L."], date(2024, 8, 9))
    assert record.updated is None, "the datestamp is of the record"
    last = "<ListRecords><resumptionToken/></ListRecords>"
    assert parse_oai(OAI.format(last)) == ([], None)
    assert parse_oai(OAI.format('<error code="noRecordsMatch"/>')) == ([], None)
    with pytest.raises(ValueError, match="badResumptionToken: expired"):
        parse_oai(OAI.format('<error code="badResumptionToken">expired</error>'))


def test_what_is_left_out_is_told_with_the_reason() -> None:
    skipped: list[Skipped] = []
    foreign = ENTRY.replace("http://arxiv.org/abs/2408.05421v2", "urn:nothing")
    untitled = re.sub("<title>.*?</title>", "<title> </title>", ENTRY, flags=re.DOTALL)
    records, _ = parse_arxiv_atom(ATOM.format(total=3, entries=foreign + untitled + ENTRY), skipped)
    assert [record.id for record in records] == ["2408.05421"]
    assert [one.item[:7] for one in skipped] == ["entry 1", "entry 2"]
    assert "urn:nothing" in skipped[0].reason
    assert skipped[1].reason.startswith("title: got ''")
    skipped.clear()
    wrong = METADATA.replace("<id>2408.05421</id>", "<id>x</id>")
    other = '<metadata><dc xmlns="urn:dc"/></metadata>'
    deleted = RECORD.format(status=' status="deleted"', metadata="")
    given = "".join(RECORD.format(status="", metadata=one) for one in (wrong, METADATA, other))
    records, _ = parse_oai(OAI.format(f"<ListRecords>{deleted}{given}</ListRecords>"), skipped)
    assert [record.id for record in records] == ["2408.05421"]
    assert [one.item for one in skipped] == [
        "record 2 (oai:arXiv.org:2408.05421)",
        "record 4 (oai:arXiv.org:2408.05421)",
    ]
    assert "arXiv id: got 'x'" in skipped[0].reason
    assert "without metadata" in skipped[1].reason
