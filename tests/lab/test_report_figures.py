"""A paper's own figures: the results they find, and SVG that fits into a page of both schemes."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.report_sample import FIXED, HERE, METHOD, RELU, MemoryStore, ash_paper, compare, sample_store

from paperworks.lab.nouns import Figure
from paperworks.lab.report import MissingResults, Results, collect
from paperworks.lab.report.colours import DARK, LIGHT, contrast, on_dark
from paperworks.lab.report.figures import SERIES, VARIABLES, draw, draw_all, for_page


@pytest.fixture(scope="module")
def results():
    paper = ash_paper()
    return Results(paper, collect(sample_store(), [paper]))


@pytest.fixture(scope="module")
def drawn(results):
    return draw_all(results.report)["ash"]


def test_curves_are_those_of_the_arm_in_the_order_of_seeds(results):
    curves = results.curves("more-accurate", "ASH", "test accuracy")
    assert [seed for seed, _ in curves] == list(range(10))
    final = results.metric("more-accurate", "ASH", "accuracy")
    for seed, curve in curves:
        assert curve[-1] == pytest.approx(final[seed] * (1 - np.exp(-5)), rel=0.01)
    assert results.metric("more-accurate", "ReLU", "accuracy") != final


def test_values_are_the_comparisons_of_the_verdict(results):
    first, second = results.values("more-accurate")
    assert (first.baseline, second.baseline) == ("ReLU", "SiLU")
    assert first.method_values == {str(s): v for s, v in results.metric("more-accurate", "ASH", "accuracy").items()}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda r: r.values("never-run"), "never-run has no numbers yet"),
        (lambda r: r.values("needs-cifar"), "needs-cifar has no numbers yet"),
        (lambda r: r.curves("never-run", "ASH", "loss"), "never-run has not been run"),
        (lambda r: r.curves("more-accurate", "ASH", "loss"), "no curve 'loss' of ASH"),
        (lambda r: r.metric("more-accurate", "ReLU", "loss"), "no metric 'loss' of ReLU"),
        (lambda r: r.metric("more-accurate", "GELU", "accuracy"), "no finished trial of GELU"),
        (lambda r: r.metric("hard-ash-forgets-less", "ASH", "accuracy"), "no finished trial of ASH"),
    ],
)
def test_what_is_missing_is_named(results, ask, said):
    with pytest.raises(MissingResults, match=said):
        ask(results)


def test_an_unknown_claim_is_a_mistake_of_the_figure(results):
    with pytest.raises(ValueError, match="claim: got 'typo'"):
        results.values("typo")


def test_an_arm_is_known_by_target_and_options_whatever_its_label():
    store, paper = MemoryStore(), ash_paper()
    renamed = replace(METHOD, name="what it was called then", options={"alpha": 1.0})
    keys = [store.trial(renamed, 0, metrics={"accuracy": 0.5}), store.trial(replace(METHOD, options={"alpha": 2.0}), 0)]
    store.keep("ash", "more-accurate", "holds", trials=tuple(keys))
    assert Results(paper, collect(store, [paper])).metric("more-accurate", "ASH", "accuracy") == {0: 0.5}


def test_the_best_of_several_is_the_arm_that_was_chosen_on_the_seeds_compared():
    store, paper = MemoryStore(), ash_paper()
    keys = [store.trial(METHOD, seed, metrics={"accuracy": 0.9}) for seed in range(2)]
    for place, arm in enumerate(FIXED.arms):
        for seed in (0, 1, 1_000_000):
            keys.append(store.trial(arm, seed, metrics={"accuracy": place + seed}))
    criterion = paper.claim("trained-percentile").criteria[0]
    chosen = replace(compare(criterion, [0.9, 0.9], [1.0, 2.0]), baseline="fixed (z=0.52)")
    store.keep("ash", "trained-percentile", "inconclusive", [chosen], trials=tuple(keys))
    results = Results(paper, collect(store, [paper]))
    assert results.metric("trained-percentile", "fixed", "accuracy") == {0: 1.0, 1: 2.0}
    assert results.metric("trained-percentile", "z=0.0", "accuracy") == {0: 0.0, 1: 1.0}


def test_a_figure_is_drawn_and_others_say_why_not(drawn):
    good, missing, broken = drawn
    assert good.svg.startswith("<svg ")
    assert good.missing == ""
    assert missing.missing == (
        "Not drawn yet: the claim needs-cifar has no finished trial of ASH. Run: paperworks run ash"
    )
    assert broken.missing == f"Not drawn: {HERE}:broken raised KeyError: '<b>no such column</b>'"
    assert missing.svg == broken.svg == ""


@pytest.mark.parametrize("target", ["no.such.module:draw", "malformed", f"{HERE}:nothing_of_that_name"])
def test_a_figure_that_does_not_exist_does_not_take_the_page_down(results, target):
    found = draw(Figure(target, "caption"), results, "x")
    assert found.missing.startswith(f"Not drawn: {target} raised ")


def test_text_is_text_in_the_fonts_of_the_page(drawn):
    root = ElementTree.fromstring(drawn[0].svg)
    texts = {"".join(element.itertext()).strip(): element for element in root.iter("text")}
    assert {"Test accuracy", "epoch", "ReLU", "SiLU"} <= set(texts)
    assert all("var(--sans" in element.get("style") for element in texts.values())
    assert "DejaVu" not in drawn[0].svg


def test_nothing_in_the_svg_reaches_outside_it(drawn):
    svg = drawn[0].svg
    root = ElementTree.fromstring(svg)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"style", "metadata", "script", "image"}
    assert "http" not in svg
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("ash-figure-1-") for name in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(ids)
    assert {e.get("href")[1:] for e in root.iter() if e.get("href")} <= set(ids)


def test_colours_come_from_the_page(drawn):
    svg = drawn[0].svg
    for variable in ("--series-1", "--series-2", "--series-3", "--ink", "--rule"):
        assert f"var({variable}," in svg
    outside = re.sub(r"(var|light-dark)\([^)]*\)", "", svg)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", outside)


def test_the_same_results_give_the_same_svg(results, drawn):
    again = draw(results.paper.figures[0], results, "ash-figure-1")
    assert again == drawn[0]


def test_drawing_leaves_matplotlibs_settings_as_they_were(results):
    before = dict(mpl.rcParams)
    draw(results.paper.figures[0], results, "x")
    assert dict(mpl.rcParams) == before


def test_the_prefix_keeps_two_figures_apart():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt">'
        '<defs><path id="m"/><clipPath id="c"/></defs><use xlink:href="#m" clip-path="url(#c)"/></svg>'
    )
    made = for_page(svg, "one", 'a "title"')
    assert 'id="one-m"' in made
    assert 'href="#one-m"' in made
    assert 'clip-path="url(#one-c)"' in made
    assert 'aria-label="a &quot;title&quot;"' in made
    assert " width=" not in made


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("font: 9px 'DejaVu Sans', 'Arial', sans-serif; fill: none", "font: 9px var(--sans, sans-serif); fill: none"),
        ("font-size: 9px; font-family: 'DejaVu Sans', Arial", "font-size: 9px; font-family: var(--sans, sans-serif)"),
        ("font-family: 'DejaVu Sans Mono', monospace", "font-family: 'DejaVu Sans Mono', monospace"),
    ],
)
def test_the_default_font_becomes_the_pages_in_every_spelling(written, made):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><text style="{written}">a</text></svg>'
    assert f'<text style="{made}">' in for_page(svg, "x", "")


COLOURS = st.tuples(*[st.integers(0, 255)] * 3).map(lambda rgb: "#" + "".join(f"{v:02x}" for v in rgb))


@given(COLOURS)
def test_a_colour_has_no_less_contrast_on_the_dark_ground(colour):
    wanted = min(contrast(colour, LIGHT), contrast(LIGHT, DARK))
    assert contrast(on_dark(colour), DARK) >= 0.97 * wanted


@given(st.integers(0xD8, 0xFF))
def test_a_shade_of_the_light_ground_becomes_one_of_the_dark_ground(grey):
    colour = f"#{grey:02x}{grey:02x}{grey:02x}"
    assert contrast(on_dark(colour), DARK) == pytest.approx(contrast(colour, LIGHT), rel=0.06)


def test_a_bright_colour_is_left_as_it_is():
    assert on_dark("#f09a5c") == "#f09a5c"
    assert contrast(on_dark("#08306b"), DARK) > 10


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_the_palette_has_eight_colours_that_can_be_told_from_the_ground():
    assert len(set(SERIES)) == 8
    assert all(contrast(colour, LIGHT) >= 4.5 for colour in SERIES)
    assert {VARIABLES[colour] for colour in SERIES} == {f"--series-{n}" for n in range(1, 9)}


def test_the_baseline_is_drawn_from_its_own_trials(results):
    relu = results.metric("more-accurate", RELU.name, "accuracy")
    assert {str(seed): value for seed, value in relu.items()} == results.values("more-accurate")[0].baseline_values
