"""The table in the README: put between its markers, and stale only when papers or claims change."""

from datetime import timedelta

import pytest
from lab.report_sample import START, MemoryStore, sample_papers, sample_store, small_paper
from markdown_it import MarkdownIt

from paperworks.lab.report import collect, readme_structure, readme_table, update_readme

README = "# paperworks\n\nBefore.\n\n<!-- verdicts:begin -->\nsuperseded\n<!-- verdicts:end -->\n\nAfter.\n"


def structure_of(papers):
    return {paper.id: [claim.id for claim in paper.claims] for paper in papers}


@pytest.fixture(scope="module")
def written():
    return update_readme(README, readme_table(collect(sample_store(), sample_papers())))


def test_what_is_outside_the_markers_stays(written):
    assert written.startswith("# paperworks\n\nBefore.\n\n<!-- verdicts:begin -->\n")
    assert written.endswith("\n<!-- verdicts:end -->\n\nAfter.\n")
    assert "superseded" not in written


def test_writing_it_twice_changes_nothing(written):
    table = readme_table(collect(sample_store(), sample_papers()))
    assert update_readme(written, table) == written


def test_the_structure_is_that_of_the_cards(written):
    assert readme_structure(written) == structure_of(sample_papers())


def test_other_numbers_and_verdicts_leave_the_structure(written):
    store = sample_store()
    later = START + timedelta(days=30)
    store.keep("ash", "more-accurate", "holds", created=later)
    store.keep("crrelu", "count", "fails", kind="exact", created=later)
    again = update_readme(README, readme_table(collect(store, sample_papers())))
    assert again != written
    assert readme_structure(again) == readme_structure(written)


def renamed(papers):
    papers[0].id = "ash-2"


def removed(papers):
    del papers[1]


def claim_renamed(papers):
    papers[1] = small_paper("crrelu", "activations", papers[1].title)
    papers[1].claims[0] = type(papers[1].claims[0])(**{**vars(papers[1].claims[0]), "id": "another"})


def claim_removed(papers):
    del papers[0].claims[3]


def added(papers):
    papers.append(small_paper("sdm", "activations", "A New One"))


@pytest.mark.parametrize("change", [renamed, removed, claim_renamed, claim_removed, added])
def test_a_change_of_papers_or_claims_makes_it_stale(written, change):
    papers = sample_papers()
    change(papers)
    assert readme_structure(written) != structure_of(papers)


def test_the_table_is_a_table_with_verdicts_and_numbers(written):
    assert "| `earlier-convergence` | Training converges earlier. | ✓\N{NO-BREAK SPACE}holds | " in written
    assert "−2.30 \\[−3.20, −1.40\\], n = 10 |" in written
    assert "9 of 10 numbers as expected" in written
    assert "0 (≤ 1e−12)" not in written
    html = MarkdownIt("commonmark").enable("table").render(written)
    assert html.count("<table>") == len(sample_papers())
    assert html.count("<tr>") == sum(len(p.claims) + 1 for p in sample_papers())


def test_where_the_numbers_come_from(written):
    assert "Measured at tier smoke, desk on AMD EPYC 7763 64-Core Processor, 2 cores" in written
    assert "newest verdict 23 November 2025" in written
    assert "Nothing has been run yet." in readme_table(collect(MemoryStore(), sample_papers()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "got 0 lines with <!-- verdicts:begin -->, wanted one"),
        ("<!-- verdicts:begin -->", "got 0 lines with <!-- verdicts:end -->"),
        ("<!-- verdicts:begin --><!-- verdicts:begin --><!-- verdicts:end -->", "got 2 lines"),
        ("<!-- verdicts:end --><!-- verdicts:begin -->", "stands before"),
    ],
)
def test_markers_that_are_not_one_pair_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        update_readme(text, "table")
    with pytest.raises(ValueError, match=said):
        readme_structure(text)
