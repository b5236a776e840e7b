"""The page: one file, everything escaped, everything there that the data has."""

import html
import itertools
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.report_sample import TRACEBACK, MemoryStore, ash_paper, sample_papers, sample_store, small_paper

from paperworks.lab.nouns import Bound, Paper
from paperworks.lab.records import STATUSES, Comparison
from paperworks.lab.report import Report, collect, render_html, report_json
from paperworks.lab.report.colours import DARK, contrast
from paperworks.lab.report.figures import SURFACE, VARIABLES
from paperworks.lab.report.html import environment, inline, is_web_address, prose, stylesheet
from paperworks.lab.report.wording import HOW_VERDICTS_ARE_MADE

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Tree(HTMLParser):
    """Elements with their attributes and text; raises where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report():
    return collect(sample_store(), sample_papers())


@pytest.fixture(scope="module")
def page(report):
    return render_html(report)


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page)


def test_the_page_is_one_file_that_asks_for_nothing(page, tree):
    assert not tree.all("script")
    assert not tree.all("link")
    assert not [a for _, a in tree.elements if "src" in a or "srcset" in a]
    assert "@import" not in page
    assert "url(" not in stylesheet()
    (policy,) = [a["content"] for a in tree.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_links_lead_to_the_web_or_to_an_id_on_the_page(tree):
    ids = [a["id"] for _, a in tree.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for attributes in tree.all("a"):
        target = attributes["href"]
        assert target.startswith("https://") or target[1:] in ids, target


def test_what_an_error_says_is_shown_not_executed(page, tree):
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert TRACEBACK.splitlines()[-1] in tree.words


NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"


def test_every_text_of_a_card_is_escaped():
    nasty = NASTY
    paper = Paper(
        "nasty", nasty, nasty, nasty, small_paper("a", "b", "c").date, nasty, 1, nasty, nasty, nasty,
        code="javascript:alert(1)", venue=nasty, provenance={nasty: nasty},
    )  # fmt: skip
    paper.exact(nasty, source=nasty, expect={nasty: Bound(equals=1)}, published=nasty, note=nasty, id="x")(len)
    store = MemoryStore()
    store.keep(
        "nasty", "x", "error", [Comparison(nasty, "fails", 2.0, expected=nasty)], reason=nasty, fingerprint=nasty,
        device=nasty, settings={nasty: nasty},
    )  # fmt: skip
    store.keep("nasty", "x", "fails", [Comparison(nasty, "fails", 2.0, expected=nasty)], tier="smoke", reason=nasty)
    tree = Tree(render_html(collect(store, [paper], command=nasty)))
    assert not tree.all("script")
    assert not tree.all("img")
    assert not [name for _, a in tree.elements for name in a if name.startswith("on")]
    assert not [a for a in tree.all("a") if not a["href"].startswith(("https://arxiv.org/", "#"))]
    assert "{{ 7 * 7 }}" in tree.words


def test_everything_about_a_claim_is_on_the_page(report, tree):
    data = report_json(report)
    for paper in data["papers"]:
        for claim in paper["claims"]:
            for text in (claim["sentence"], claim["source"], claim["published"], claim["note"], *claim["why"]):
                plain = " ".join(text.replace("`", " ").split())
                assert plain.replace(" ", "") in tree.words.replace(" ", ""), plain
            for criterion in claim["criteria"]:
                assert criterion["metric_meaning"] in tree.words


@pytest.mark.parametrize(
    "said",
    [
        "K. Lee, J. Yang, H. Lee, J. Y. Hwang", "Authors (4)", "20 October 2022", "NeurIPS 2022", "2210.11672",
        "github.com/kyungsu-lee-ksl/ASH", "paperworks.activations.ash", "Student's t", "BCa bootstrap",
        "all values equal", "10 seeds", "1 min 36 s", "25,557,130", "= 0.3317 (± 0.001)",
        "2 more rows", "2 verdicts so far", "imagefolder:/data/street", "our reconstruction: a constant map",
        "AMD EPYC 7763 64-Core Processor, 2 cores", "torch 2.13.0", "paperworks report --paper ash",
        "Not drawn yet: the claim needs-cifar has no finished trial of ASH. Run: paperworks run ash",
        "lines left out",
    ],
)  # fmt: skip
def test_facts_on_the_page(tree, said):
    assert said in tree.words


def test_how_verdicts_are_made_in_ten_lines(tree):
    assert len(HOW_VERDICTS_ARE_MADE) == 10
    assert all(line in tree.words for line in HOW_VERDICTS_ARE_MADE)


def test_a_failing_row_of_an_exact_claim_is_never_folded_away(page):
    row = page.index("share kept at z = 0.8416")
    assert row < page.index("share kept at z = -1.0") < page.index("2 more rows")


def test_verdicts_have_colour_word_and_shape(page):
    for status in STATUSES:
        name = status.replace(" ", "-")
        assert re.search(rf'<span class="badge {name}"><svg class="icon".*?</svg><span>{status}</span></span>', page)
    icons = set(re.findall(r'<span class="badge [a-z-]+">(<svg.*?</svg>)', page))
    assert len(icons) == len(STATUSES)


def test_a_plot_for_every_criterion_with_numbers(page):
    assert page.count('<svg class="plot ') == 6
    assert page.count('<circle class="dot"') == 10 * 5 + 2


def test_headings_step_down_one_at_a_time(page):
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_headers(tree, page):
    assert page.count("<table") == page.count("<caption")
    assert all("scope" in attributes for attributes in tree.all("th"))


def test_the_index_is_there_for_many_papers_only(page):
    assert '<table class="index">' in page
    assert "3 papers, 15 claims" in page
    alone = render_html(collect(sample_store(), [ash_paper()]))
    assert '<table class="index">' not in alone
    assert '<h1 id="ash-title">Stochastic Adaptive Activation Function</h1>' in alone


def test_a_report_of_nothing_is_a_page_too():
    words = Tree(render_html(Report(()))).words
    assert "0 papers, 0 claims" in words
    assert "Nothing has been run yet." in words


def test_without_a_verdict_an_exact_claim_shows_what_is_expected():
    words = Tree(render_html(collect(MemoryStore(), [small_paper("crrelu", "activations", "A Method")]))).words
    assert "Never run: paperworks run crrelu --claim count" in words
    assert "value – = 7 –" in words


def test_the_code_is_as_it_was_written(page):
    usage = ash_paper().usage.strip("\n")
    assert usage in [
        html.unescape(block) for block in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, re.DOTALL)
    ]


def test_a_web_page_can_use_the_body_of_a_paper_alone(report):
    source = '{% from "paper.html.j2" import paper_page %}{{ paper_page(paper, [], 1) }}'
    body = environment().from_string(source).render(paper=report_json(report)["papers"][0])
    assert "<html" not in body
    assert Tree(body).elements[0] == ("article", {"class": "paper", "id": "ash", "aria-labelledby": "ash-title"})


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("https://github.com/a/b", True), ("HTTP://example.org", True), ("javascript:alert(1)", False),
        ("data:text/html,x", False), ("github.com/a/b", False), (" https://x.org", False), ("https://", False),
    ],
)  # fmt: skip
def test_only_web_addresses_become_links(text, is_one):
    assert is_web_address(text) is is_one


@settings(max_examples=100)
@given(st.text("ab`<>&\"'\n ", max_size=40))
def test_prose_shows_every_character_once(text):
    for made in (inline(text), prose(text)):
        assert re.fullmatch(r"(?:</?(?:p|code)>|[^<>])*", str(made))
    shown = html.unescape(re.sub(r"</?code>", "", str(inline(text))))
    assert shown.replace("`", "") == text.replace("`", "")


def test_code_within_prose():
    assert inline("a `b<c` d") == "a <code>b&lt;c</code> d"
    assert prose("one\ntwo\n\nthree") == "<p>one two</p>\n<p>three</p>"


def palette(scheme):
    """The style sheet's variables that are colours, in the light or the dark scheme."""
    light, dark = re.findall(r":root \{(.*?)\}", stylesheet(), re.DOTALL)[:2]
    found = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6});", light))
    return found if scheme == "light" else found | dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6});", dark))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme):
    colours = palette(scheme)
    grounds = [colours["--surface"], colours["--wash"], colours["--shade"]]
    for name in ("--ink", "--muted", "--link"):
        assert all(contrast(colours[name], ground) >= 4.5 for ground in grounds[: 3 if name != "--link" else 2]), name
    for status in STATUSES:
        name = f"--{status.replace(' ', '-')}"
        assert contrast(colours[name], colours[f"{name}-wash"]) >= 4.5, name
        assert contrast(colours[name], colours["--surface"]) >= 4.5, name
    for number in range(1, 9):
        assert contrast(colours[f"--series-{number}"], colours["--surface"]) >= 4.5


def test_the_style_sheet_has_the_colours_that_figures_refer_to():
    light = palette("light")
    for colour, variable in VARIABLES.items():
        if colour != "#000000":
            assert light[variable] == colour
    assert light["--surface"] == SURFACE
    assert palette("dark")["--surface"] == DARK
