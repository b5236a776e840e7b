"""The page in a browser: nothing is asked for, nothing complains, nothing overflows or overlaps, text can be read."""

import pytest
from lab.report_sample import LONG_WORD, ash_paper, sample_papers, sample_store, small_paper

from paperworks.lab.report import collect, render_html

SIZES = [(1280, 900), (375, 812)]

# Every text of the page as rectangles, by the block that holds it; text that is not shown has none.
BLOCKS = """root => {
  const blocks = new Map();
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    if (!node.data.trim() || node.parentElement.closest('.unseen, title, thead')) continue;
    let block = node.parentElement;
    const inside = e => getComputedStyle(e).display.startsWith('inline') && !e.matches('svg text, .badge');
    while (inside(block)) block = block.parentElement;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) {
      if (r.width < 1 || r.height < 1) continue;
      if (!blocks.has(block)) blocks.set(block, []);
      blocks.get(block).push([r.left, r.top, r.right, r.bottom, node.data.trim().slice(0, 40)]);
    }
  }
  return [...blocks.values()];
}"""

# Contrast of every text with what is painted behind it, where that is below 4.5.
LOW_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const parse = text => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest('title')) continue;
    const text = element.closest('svg text');
    const fore = parse(text ? getComputedStyle(element).fill : getComputedStyle(element).color);
    let ground = element, back = [0, 0, 0, 0];
    while (ground && back[3] === 0) {
      back = parse(getComputedStyle(ground).backgroundColor);
      ground = ground.parentElement;
    }
    if (text && text.matches('.side')) {
      back = parse(getComputedStyle(text.closest('.plot').querySelector('.claimed')).fill);
    }
    const [a, b] = [luminance(fore.slice(0, 3)), luminance(back.slice(0, 3))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (fore[3] < 255 || back[3] < 255 || ratio < 4.5) low.push([node.data.trim().slice(0, 40), ratio]);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of many papers with everything there is, among it words that do not want to break."""
    papers = [*sample_papers(), small_paper("a-very-long-id-of-a-paper-with-no-place-to-break", "neuro", LONG_WORD)]
    papers[0].claims[0] = type(papers[0].claims[0])(**{**vars(papers[0].claims[0]), "sentence": LONG_WORD * 3})
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(collect(sample_store(), papers)), encoding="utf-8")
    return path


def opened(browser, file, size, scheme="light"):
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
    return page


@pytest.fixture(params=SIZES, ids=lambda size: str(size[0]))
def page(request, browser, file):
    page = opened(browser, file, request.param)
    yield page
    page.close()


def test_nothing_is_asked_for_and_nothing_complains(page, file):
    assert page.asked == [file.as_uri()]
    assert page.said == []


def test_the_page_is_no_wider_than_the_window(page):
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
          .filter(e => !e.closest('.scroll, pre, .unseen, .skip, thead'))
          .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > width + 0.5)
          .map(e => e.outerHTML.slice(0, 120))""",
        width,
    )
    assert outside == []


def overlaps(blocks):
    """Pairs of texts of different blocks whose rectangles share more than a pixel both ways."""
    found = []
    for place, one in enumerate(blocks):
        for other in blocks[place + 1 :]:
            for a in one:
                for b in other:
                    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                    if across > 1 and down > 1:
                        found.append((a[4], b[4]))
    return found


def test_no_two_texts_of_a_claim_overlap(page):
    rows = page.query_selector_all("tr.claim")
    assert len(rows) == sum(len(paper.claims) for paper in sample_papers()) + 2
    for row in rows:
        blocks = row.evaluate(BLOCKS)
        assert len(blocks) > 3
        assert overlaps(blocks) == [], row.get_attribute("id")


def test_overlaps_are_found_where_there_are_some(page):
    page.add_style_tag(content=".stats { line-height: 0; gap: 0; } .stats dt { margin-bottom: -1rem; }")
    assert any(overlaps(row.evaluate(BLOCKS)) for row in page.query_selector_all("tr.claim"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, file, scheme):
    page = opened(browser, file, SIZES[0], scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert dark == (scheme == "dark")
    assert page.evaluate(LOW_CONTRAST) == []
    page.close()


def test_the_keyboard_reaches_links_and_code_and_shows_where_it_is(page):
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle,"
                " document.activeElement.getBoundingClientRect().left >= 0]"
            )
        )
    assert reached[0][0] == "A"
    assert all(outline == "solid" and inside for _, outline, inside in reached)
    reachable = page.evaluate("[...document.querySelectorAll('pre, .drawing')].every(e => e.tabIndex === 0)")
    assert reachable


def test_a_claims_plot_spans_its_column(page):
    for plot in page.query_selector_all("svg.plot"):
        box, column = plot.bounding_box(), plot.evaluate_handle("e => e.closest('.evidence')").bounding_box()
        assert box["width"] == pytest.approx(column["width"], abs=1)


def test_printed_it_is_light_and_unfolded(browser, file):
    page = opened(browser, file, SIZES[0], "dark")
    page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = false))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--surface').trim()") == "#ffffff"
    assert page.evaluate("document.querySelector('details pre').checkVisibility({ contentVisibilityAuto: true })")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_a_single_paper_fits_a_phone(browser, tmp_path):
    path = tmp_path / "one.html"
    path.write_text(render_html(collect(sample_store(), [ash_paper()])), encoding="utf-8")
    page = opened(browser, path, SIZES[1])
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.said == []
    page.close()
