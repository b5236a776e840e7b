"""The report as plain data under a versioned schema. The page and the Markdown are written from this data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from paperworks.lab.nouns import Bound, Claim, Criterion, Paper, at_tier
from paperworks.lab.records import STATUSES, Comparison, TrialResult, TrialSpec, Verdict, plain
from paperworks.lab.report.collect import Report, changed_settings
from paperworks.lab.report.wording import criterion_words, excerpt, headline, plural, short_numbers, why_undecided

SCHEMA = "paperworks-report/1"


def schema() -> dict[str, Any]:
    """The JSON schema of `report_json`, draft 2020-12."""
    text = files("paperworks.lab.report").joinpath("schema/report-v1.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def report_json(report: Report) -> dict[str, Any]:
    """`report` as JSON data, valid under `schema`; the fields are described in ``docs/report-schema.md``."""
    papers = [_paper(report, paper) for paper in report.papers]
    data = {
        "schema": SCHEMA,
        "version": report.version,
        "created": report.created.isoformat(),
        "command": report.command,
        "tier": report.tier,
        "settings": dict(report.settings),
        "counts": _total(paper["counts"] for paper in papers),
        "papers": papers,
        "machines": [asdict(machine) for _, machine in sorted(report.machines.items())],
    }
    return dict(plain(data))


def counts(statuses: Iterable[str]) -> dict[str, int]:
    """How many there are of each status, zeros included."""
    found: dict[str, int] = dict.fromkeys(map(str, STATUSES), 0)
    for status in statuses:
        found[status] += 1
    return found


def _total(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found = counts(())
    for one in several:
        for status, number in one.items():
            found[status] += number
    return found


def _paper(report: Report, paper: Paper) -> dict[str, Any]:
    claims = [_claim(report, paper, claim) for claim in paper.claims]
    by_id = {claim["id"]: claim["status"] for claim in claims}
    return {
        "id": paper.id,
        "title": paper.title,
        "area": paper.area,
        "arxiv": paper.arxiv,
        "url": paper.url,
        "date": paper.date.isoformat(),
        "authors": paper.authors,
        "n_authors": paper.n_authors,
        "venue": paper.venue,
        "code": paper.code,
        "summary": paper.summary,
        "method": paper.method,
        "usage": paper.usage,
        "run": run_command(paper, report),
        "counts": counts(by_id.values()),
        "claims": claims,
        "findings": [
            {
                "sentence": finding.sentence,
                "shown_by": [{"claim": id, "status": by_id.get(id, "not run")} for id in finding.shown_by],
            }
            for finding in paper.findings
        ],
        "figures": [{"target": figure.target, "caption": figure.caption} for figure in paper.figures],
        "provenance": [{"part": part, "origin": origin} for part, origin in paper.provenance.items()],
    }


def run_command(paper: Paper, report: Report) -> str:
    """The command that measures the claims of `paper` again, with the tier and settings of the report."""
    words = ["paperworks", "run", paper.id]
    if report.tier is not None:
        words += ["--tier", report.tier]
    known = {s.name for c in paper.claims if c.protocol is not None for s in c.protocol.settings}
    for name, value in report.settings.items():
        if name in known:
            words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def _first_run(report: Report, paper: Paper, claim: Claim) -> str:
    """The command that measures one claim for the first time."""
    words = [run_command(paper, report), "--claim", claim.id]
    if report.tier is None and any(need.kind == "gpu" for need in claim.needs):
        words += ["--tier", "gpu"]
    given = [need.name for need in claim.needs if need.kind == "setting" and need.name not in report.settings]
    return " ".join([*words, *(f"--set {name}=..." for name in given)])


def _claim(report: Report, paper: Paper, claim: Claim) -> dict[str, Any]:
    verdict = report.verdicts.get((paper.id, claim.id))
    tier = verdict.tier if verdict is not None else report.tier or "desk"
    return {
        "id": claim.id,
        "sentence": claim.sentence,
        "kind": claim.kind,
        "source": claim.source,
        "published": claim.published,
        "note": claim.note,
        "needs": [{"kind": need.kind, "name": need.name, "what": need.what} for need in claim.needs],
        "protocol": claim.protocol.name if claim.protocol is not None else "",
        "settings": [
            {"name": setting.name, "type": setting.kind.__name__, "help": setting.help}
            for setting in (claim.protocol.settings if claim.protocol is not None else ())
        ],
        "criteria": [_criterion(claim, criterion, tier) for criterion in claim.criteria],
        "bounds": [_bound(label, bound) for label, bound in claim.bounds.items()],
        "status": verdict.status if verdict is not None else "not run",
        "why": _why(report, paper, claim, verdict),
        "verdict": _verdict(report, claim, verdict) if verdict is not None else None,
        "history": [_past(claim, past) for past in report.history.get((paper.id, claim.id), ())],
    }


def _criterion(claim: Claim, criterion: Criterion, tier: str) -> dict[str, Any]:
    assert claim.protocol is not None
    return {
        "text": str(criterion),
        "words": criterion_words(criterion, tier),
        "metric": criterion.metric,
        "metric_meaning": claim.protocol.metrics[criterion.metric],
        "method": criterion.method.name,
        "baseline": criterion.baseline.name if criterion.baseline is not None else None,
        "direction": criterion.direction,
        "margin": criterion.margin,
        "scale": criterion.scale,
        "seeds": at_tier(criterion.seeds, tier),
    }


def _bound(label: str, bound: Bound) -> dict[str, Any]:
    return {"label": label, "text": str(bound), **asdict(bound)}


def _verdict(report: Report, claim: Claim, verdict: Verdict) -> dict[str, Any]:
    return {
        "status": verdict.status,
        "tier": verdict.tier,
        "device": verdict.device,
        "settings": dict(verdict.settings),
        "changed_settings": changed_settings(claim, verdict),
        "reason": verdict.reason,
        "comparisons": [_comparison(comparison) for comparison in verdict.comparisons],
        "errors": _errors(report, verdict),
        "seeds": verdict.seeds,
        "seconds": verdict.seconds,
        "trials": len(verdict.trials),
        "fingerprint": verdict.fingerprint,
        "machine": verdict.machine,
        "created": verdict.created.isoformat(),
    }


def _past(claim: Claim, verdict: Verdict) -> dict[str, Any]:
    names = ("status", "tier", "device", "seeds", "seconds", "fingerprint", "machine")
    return {
        **{name: getattr(verdict, name) for name in names},
        "changed_settings": changed_settings(claim, verdict),
        "reason": headline(verdict.reason),
        "numbers": short_numbers({"comparisons": [_comparison(comparison) for comparison in verdict.comparisons]}),
        "created": verdict.created.isoformat(),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "paired": paired_values(comparison)}


def paired_values(comparison: Comparison) -> dict[str, float]:
    """What a criterion judges, by seed: difference or ratio of the arms, or without a baseline the method's value."""
    if not comparison.baseline_values:
        return dict(comparison.method_values)
    paired = {}
    for seed, value in comparison.method_values.items():
        if seed in comparison.baseline_values:
            other = comparison.baseline_values[seed]
            if comparison.scale != "ratio":
                paired[seed] = value - other
            elif other:
                paired[seed] = value / other
    return paired


def _errors(report: Report, verdict: Verdict) -> list[dict[str, Any]]:
    """The errors behind a verdict, those that say the same counted together, the most frequent first."""
    groups: dict[str, list[tuple[TrialSpec, TrialResult]]] = {}
    for key in verdict.trials:
        if key in report.trials and report.trials[key][1].status == "error":
            spec, result = report.trials[key]
            groups.setdefault(headline(result.error) or "an error without a message", []).append((spec, result))
    if not groups and verdict.status == "error":
        # What raised was not a trial, or the trial has been run again since.
        return [{"message": headline(verdict.reason), "trials": 0, "arms": [], "seeds": [], **excerpt(verdict.reason)}]
    return [
        {
            "message": message,
            "trials": len(trials),
            "arms": sorted({spec.label for spec, _ in trials if spec.label}),
            "seeds": sorted({spec.seed for spec, _ in trials}),
            **excerpt(trials[0][1].error),
        }
        for message, trials in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _why(report: Report, paper: Paper, claim: Claim, verdict: Verdict | None) -> list[str]:
    """Why a claim is undecided, one sentence a reason; nothing for one that holds or fails."""
    if verdict is None:
        needs = [f"Needs {_need(need.name, need.what, need.kind)}." for need in claim.needs]
        return [
            *needs,
            f"Never run{f' at tier {report.tier}' if report.tier else ''}: `{_first_run(report, paper, claim)}`",
        ]
    if verdict.status in ("holds", "fails"):
        return []
    if verdict.status == "error":
        return [_error_words(error, len(verdict.trials)) for error in _errors(report, verdict)]
    reasons = [headline(verdict.reason)] if verdict.reason.strip() else []
    if verdict.status == "inconclusive":
        told = _undecided(verdict)
        # A verdict's reason may be that of its criteria, strung together.
        if all(any(part in line for line in told) for part in verdict.reason.split("; ")):
            reasons = []
        reasons += told
    if verdict.status == "not run" and not reasons:
        reasons = [f"Needs {_need(need.name, need.what, need.kind)}." for need in claim.needs]
    return reasons


def _undecided(verdict: Verdict) -> list[str]:
    """Why each inconclusive criterion is so, with the criterion's name where there are several."""
    several = len(verdict.comparisons) > 1
    reasons = []
    for comparison in verdict.comparisons:
        if comparison.side == "inconclusive":
            reason = why_undecided(_comparison(comparison))
            reasons.append(f"{comparison.label}: {reason}" if several else reason)
    return reasons


def _error_words(error: Mapping[str, Any], total: int) -> str:
    of = f"{error['trials']} of {plural(total, 'trial')}" if error["trials"] and total > 1 else ""
    arms = ", ".join(error["arms"][:3]) + (f" and {len(error['arms']) - 3} more" if len(error["arms"]) > 3 else "")
    said = ": ".join(filter(None, (of, arms))) if of else ""
    return f"{error['message']} ({said})" if said else str(error["message"])


def _need(name: str, what: str, kind: str) -> str:
    return f"{what} (--set {name}=...)" if kind == "setting" else f"{what} ({name})" if kind == "package" else what
