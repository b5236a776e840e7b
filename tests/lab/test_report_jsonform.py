"""The report as data: valid under its schema, described in the docs, and true to the verdicts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.report_sample import START, TRACEBACK, MemoryStore, ash_paper, sample_papers, sample_store, small_paper

from paperworks.lab.records import STATUSES, Comparison
from paperworks.lab.report import Report, collect, report_json, schema
from paperworks.lab.report.jsonform import paired_values

DOCS = Path(__file__).parents[2] / "docs" / "report-schema.md"


@pytest.fixture(scope="module")
def data():
    return report_json(collect(sample_store(), sample_papers()))


def claim_of(data, id):
    return next(claim for claim in data["papers"][0]["claims"] if claim["id"] == id)


def validate(data):
    jsonschema.Draft202012Validator(schema()).validate(data)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_report_is_valid_and_survives_strict_json(data):
    validate(data)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_an_empty_report_is_valid():
    validate(report_json(Report(())))


@pytest.mark.parametrize("place", ["", "papers/0", "papers/0/claims/3", "papers/0/claims/3/verdict", "machines/0"])
def test_the_schema_refuses_a_field_that_it_does_not_name(data, place):
    changed = json.loads(json.dumps(data))
    inside = changed
    for step in filter(None, place.split("/")):
        inside = inside[int(step) if step.isdigit() else step]
    inside["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        validate(changed)


def test_the_schema_asks_for_every_field_that_it_names():
    parts = {"": schema(), **schema()["$defs"]}
    for name, part in parts.items():
        if "properties" in part:
            assert set(part["required"]) == set(part["properties"]), name


def section(title):
    found = re.search(rf"^##+ {title}.*?$(.*?)(?=^##+ |\Z)", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert found, title
    return found.group(1)


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("Report", ""), ("Paper", "paper"), ("Claim", "claim"), ("Criterion", "criterion"), ("Verdict", "verdict"),
        ("Verdict", "error"), ("Comparison", "comparison"), ("Past verdict", "past"), ("Machine", "machine"),
    ],
)  # fmt: skip
def test_the_docs_name_every_field(title, part):
    fields = schema()["$defs"][part]["properties"] if part else schema()["properties"]
    named = set(re.findall(r"`([a-z_]+)`", section(title)))
    assert set(fields) <= named


def test_counts_add_up(data):
    for paper in data["papers"]:
        statuses = [claim["status"] for claim in paper["claims"]]
        assert paper["counts"] == {status: statuses.count(status) for status in STATUSES}
    assert sum(data["counts"].values()) == sum(len(paper["claims"]) for paper in data["papers"])


def test_numbers_are_those_of_the_verdict(data):
    report = collect(sample_store(), [ash_paper()])
    for comparison, found in zip(
        report.verdicts["ash", "more-accurate"].comparisons,
        claim_of(data, "more-accurate")["verdict"]["comparisons"],
        strict=True,
    ):
        assert (found["observed"], found["low"], found["high"]) == (
            comparison.observed,
            comparison.low,
            comparison.high,
        )
        mean = sum(found["paired"].values()) / len(found["paired"])
        assert mean == pytest.approx(comparison.observed)


def test_an_infinite_number_is_text():
    store = MemoryStore()
    endless = Comparison("c", "holds", 1.0, effect=float("inf"), margin=0.0, direction="greater", low=float("nan"))
    store.keep("crrelu", "better", "holds", [endless])
    data = report_json(collect(store, [small_paper("crrelu", "activations", "A Method")]))
    found = data["papers"][0]["claims"][1]["verdict"]["comparisons"][0]
    assert (found["effect"], found["low"]) == ("inf", "nan")
    validate(data)


def test_reasons_are_given_where_a_claim_is_undecided_and_nowhere_else(data):
    for paper in data["papers"]:
        for claim in paper["claims"]:
            assert bool(claim["why"]) == (claim["status"] not in ("holds", "fails")), claim["id"]
    assert claim_of(data, "trained-percentile")["why"] == ["2 seeds; fewer than 8 decide nothing"]
    (why,) = claim_of(data, "more-accurate")["why"]
    assert "SiLU" in why
    assert "above 0.05, the level that Holm's correction leaves" in why
    assert "CIFAR-10" in claim_of(data, "needs-cifar")["why"][0]
    assert claim_of(data, "never-run")["why"] == [
        "Needs a GPU with 8 GiB.",
        "Never run: `paperworks run ash --claim never-run --tier gpu`",
    ]


def test_a_reason_that_the_verdict_gives_is_not_said_twice():
    store, paper = MemoryStore(), small_paper("crrelu", "activations", "A Method")
    near, few = "the interval includes the margin", "5 seeds; a verdict takes at least 8"
    undecided = [
        Comparison(label, "inconclusive", 0.1, margin=0.0, direction="greater", reason=reason)
        for label, reason in (("a", near), ("b", few), ("c", near))
    ]
    store.keep("crrelu", "better", "inconclusive", undecided, reason=f"{near}; {few}")
    data = report_json(collect(store, [paper]))
    assert data["papers"][0]["claims"][1]["why"] == [f"a: {near}", f"b: {few}", f"c: {near}"]


def test_what_the_verdict_adds_to_its_criteria_is_said_first():
    store, paper = MemoryStore(), small_paper("crrelu", "activations", "A Method")
    undecided = Comparison("c", "inconclusive", 0.1, margin=0.0, direction="greater", reason="too wide")
    store.keep("crrelu", "better", "inconclusive", [undecided], reason="half of the seeds are missing")
    data = report_json(collect(store, [paper]))
    assert data["papers"][0]["claims"][1]["why"] == ["half of the seeds are missing", "too wide"]


def test_errors_with_the_same_message_are_one_with_first_and_last_lines(data):
    assert claim_of(data, "hard-ash-forgets-less")["why"] == [f"{TRACEBACK.splitlines()[-1]} (3 of 3 trials: ASH)"]
    (error,) = claim_of(data, "hard-ash-forgets-less")["verdict"]["errors"]
    lines = TRACEBACK.splitlines()
    assert error["message"] == lines[-1]
    assert (error["trials"], error["arms"], error["seeds"]) == (3, ["ASH"], [100, 101, 102])
    assert error["first"] == lines[:4]
    assert error["last"] == lines[-8:]
    assert error["omitted"] == len(lines) - 12


def test_a_traceback_in_the_reason_alone_is_an_error_too():
    store, paper = MemoryStore(), small_paper("crrelu", "activations", "A Method")
    store.keep(
        "crrelu", "count", "error", kind="exact", reason="Traceback (most recent call last):\n  File x\nKeyError: 1"
    )
    claim = report_json(collect(store, [paper]))["papers"][0]["claims"][0]
    assert claim["why"] == ["KeyError: 1"]
    assert claim["verdict"]["errors"][0]["message"] == "KeyError: 1"


def test_settings_of_the_user_are_told_from_the_claims_own(data):
    assert claim_of(data, "earlier-convergence")["verdict"]["changed_settings"] == {}
    assert claim_of(data, "sparse-enough")["verdict"]["changed_settings"] == {"data": "imagefolder:/data/street"}


def test_the_run_command_has_the_settings_that_the_paper_knows():
    report = collect(MemoryStore(), [ash_paper()], tier="smoke", settings={"data": "my set", "unknown": 1})
    assert report_json(report)["papers"][0]["run"] == "paperworks run ash --tier smoke --set 'data=my set'"


def test_history_is_told_newest_first(data):
    history = claim_of(data, "more-accurate")["history"]
    assert [past["created"][:10] for past in history] == ["2025-11-23", "2025-11-20"]
    assert history[0]["created"] > START.isoformat()


VALUES = st.dictionaries(st.integers(0, 20).map(str), st.floats(0.1, 10), min_size=1)


@given(method=VALUES, baseline=VALUES, ratio=st.booleans())
def test_paired_values_exist_for_seeds_of_both_arms_only(method, baseline, ratio):
    comparison = Comparison(
        "c", "holds", method_values=method, baseline_values=baseline, scale="ratio" if ratio else "difference"
    )
    paired = paired_values(comparison)
    assert set(paired) == set(method) & set(baseline)
    for seed, value in paired.items():
        assert value == (method[seed] / baseline[seed] if ratio else method[seed] - baseline[seed])


def test_a_ratio_to_nothing_is_left_out():
    comparison = Comparison("c", "holds", scale="ratio", method_values={"0": 1.0}, baseline_values={"0": 0.0})
    assert paired_values(comparison) == {}
    assert paired_values(replace(comparison, scale="difference")) == {"0": 1.0}
