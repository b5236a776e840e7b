"""The report as Markdown: what a reader sees is what the cards and verdicts say."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab.report_sample import MemoryStore, ash_paper, sample_papers, sample_store, small_paper
from markdown_it import MarkdownIt

from paperworks.lab.report import Report, collect, render_markdown, report_json
from paperworks.lab.report.markdown import cell, escape, fence, table


def parser():
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def text():
    return render_markdown(collect(sample_store(), sample_papers()))


def shown(tokens):
    """The text of inline tokens."""
    return "".join(t.content for token in tokens if token.type == "inline" for t in token.children)


@settings(max_examples=300)
@example("---")
@example("# a")
@example("1. a")
@example("- - -")
@example("a | b")
@example("http_x_ _y_ `c|d` ~~e~~")
@example("`a``b`")
@given(st.text("ab1 `*_[]()<>|~#+-.=!&;:\\/$\n", max_size=30))
def test_escaped_text_reads_as_it_was_written(text):
    written = " ".join(text.split())
    tokens = parser().parse(escape(text))
    assert {t.type for t in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    children = [t for token in tokens if token.type == "inline" for t in token.children]
    assert {t.type for t in children} <= {"text", "code_inline", "text_special"}
    squeezed = re.sub(r"[`\s]", "", written)
    assert re.sub(r"[`\s]", "", shown(tokens)) == squeezed


@settings(max_examples=200)
@given(st.text("ab `*_[]<>|~-\\", max_size=20), st.text("ab `*_[]<>|~-\\", max_size=20))
def test_cells_keep_their_columns(one, other):
    written = [re.sub(r"[`\s\\]", "", text) for text in (one, other)]
    tokens = parser().parse("\n".join(table(["x", "y"], [[cell(one), cell(other)]])))
    cells = [tokens[n + 1] for n, token in enumerate(tokens) if token.type == "td_open"]
    assert [re.sub(r"[`\s\\]", "", shown([token])) for token in cells] == written


def test_a_fence_is_longer_than_any_in_the_text():
    lines = fence("a\n````\nb", "python")
    (token,) = parser().parse("\n".join(lines))
    assert (token.type, token.info, token.content) == ("fence", "python", "a\n````\nb\n")


def test_no_html_comes_through(text):
    tokens = parser().parse(text)
    assert not [t for t in tokens if t.type == "html_block"]
    assert not [t for token in tokens for t in token.children or [] if t.type == "html_inline"]


def test_every_claim_is_there_with_its_numbers(text):
    data = report_json(collect(sample_store(), sample_papers()))
    words = " ".join(shown([token]) for token in parser().parse(text)).replace("\N{NO-BREAK SPACE}", " ")
    for paper in data["papers"]:
        assert paper["title"] in words
        for claim in paper["claims"]:
            sentence = claim["sentence"].replace("`", "")
            assert f"{claim['status']}: {sentence}" in words, claim["id"]
            assert all(reason.replace("`", "") in words for reason in claim["why"])
    assert "+0.0069 to +0.0160" in words
    assert "25,557,130" in words
    assert "12 lines left out" in text


def test_a_table_for_the_index_for_every_verdict_with_numbers_and_for_provenance(text):
    heads = sum(token.type == "thead_open" for token in parser().parse(text))
    data = report_json(collect(sample_store(), sample_papers()))
    with_numbers = sum(bool(c["verdict"] and c["verdict"]["comparisons"]) for p in data["papers"] for c in p["claims"])
    assert heads == 1 + with_numbers + 1


def test_one_paper_has_no_index():
    text = render_markdown(collect(MemoryStore(), [ash_paper()]))
    assert text.startswith("# Stochastic Adaptive Activation Function\n")
    assert "| paper |" not in text


def test_what_an_exact_claim_expects_is_said_before_it_is_run():
    text = render_markdown(collect(MemoryStore(), [small_paper("crrelu", "activations", "A Method")]))
    assert "- expected: \\= 7" in text


def test_a_report_of_nothing():
    text = render_markdown(Report(()))
    assert text.startswith("# 0 papers, 0 claims\n")
    assert "No paper was asked for." in text
