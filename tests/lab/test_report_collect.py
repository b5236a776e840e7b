"""Which verdict a report shows for a claim, and what it carries along."""

from datetime import timedelta

import pytest
from lab.report_sample import MACHINE, START, MemoryStore, ash_paper, sample_papers, sample_store, small_paper

from paperworks.lab.report import Results, collect
from paperworks.lab.store import open_store


@pytest.fixture
def paper():
    return small_paper("crrelu", "activations", "A Method")


def shown(store, paper, claim="better", **options):
    return collect(store, [paper], **options).verdicts.get((paper.id, claim))


def test_every_claim_with_a_verdict_is_there_and_no_other():
    report = collect(sample_store(), sample_papers())
    with_verdict = {claim for paper, claim in report.verdicts if paper == "ash"}
    assert with_verdict == {claim.id for claim in ash_paper().claims} - {"never-run"}
    assert not any(paper == "crrelu" for paper, _ in report.verdicts)


def test_the_newer_of_two_verdicts_is_shown_and_both_are_told(paper):
    store = MemoryStore()
    newer = store.keep("crrelu", "better", "holds", created=START + timedelta(days=1))
    older = store.keep("crrelu", "better", "fails", created=START)
    report = collect(store, [paper])
    assert report.verdicts["crrelu", "better"] == newer
    assert report.history["crrelu", "better"] == (newer, older)


def test_a_smoke_run_does_not_displace_the_desk_run(paper):
    store = MemoryStore()
    desk = store.keep("crrelu", "better", "holds")
    smoke = store.keep("crrelu", "better", "inconclusive", tier="smoke", created=START + timedelta(days=9))
    assert shown(store, paper) == desk
    assert shown(store, paper, tier="smoke") == smoke
    assert shown(store, paper, tier="gpu") is None


def test_what_was_run_comes_before_what_a_higher_tier_could_not_run(paper):
    store = MemoryStore()
    desk = store.keep("crrelu", "better", "fails")
    store.keep("crrelu", "better", "not run", tier="gpu", reason="needs a GPU", created=START + timedelta(days=1))
    assert shown(store, paper) == desk


def test_the_claims_own_settings_come_before_a_users(paper):
    store = MemoryStore()
    own = store.keep("crrelu", "better", "holds", settings={"data": "digits", "epochs": 20})
    users = store.keep("crrelu", "better", "fails", settings={"data": "mine"}, created=START + timedelta(days=1))
    assert shown(store, paper) == own
    assert shown(store, paper, settings={"data": "mine"}) == users
    assert shown(store, paper, settings={"epochs": "20"}).status in ("holds", "fails")
    assert shown(store, paper, settings={"data": "other"}) is None


def test_settings_of_other_protocols_do_not_hide_an_exact_claim(paper):
    store = MemoryStore()
    count = store.keep("crrelu", "count", "holds", kind="exact")
    assert shown(store, paper, "count", settings={"data": "mine"}) == count


def test_controls_and_claims_that_the_card_lost_are_left_out(paper):
    store = MemoryStore()
    store.keep("crrelu", "better", "inconclusive", control=True)
    store.keep("crrelu", "renamed-since", "holds")
    report = collect(store, [paper])
    assert report.verdicts == {}
    assert report.history["crrelu", "better"] == ()


def test_trials_and_machines_behind_the_verdicts():
    report = collect(sample_store(), [ash_paper()])
    assert len(report.trials) == 30 + 3
    for key, (spec, result) in report.trials.items():
        assert key == spec.key == result.key
    assert report.machines == {MACHINE.id: MACHINE}


def test_a_trial_that_the_store_lost_is_left_out():
    store = sample_store()
    lost = next(iter(store.known))
    del store.known[lost]
    assert lost not in collect(store, [ash_paper()]).trials


def test_the_command_makes_the_same_report(paper):
    report = collect(MemoryStore(), [paper], tier="desk", settings={"data": "imagefolder:/my data"})
    assert report.command == "paperworks report --paper crrelu --tier desk --set 'data=imagefolder:/my data'"
    assert collect(MemoryStore(), [paper], command="paperworks report --all").command == "paperworks report --all"


def test_an_unknown_tier_is_named():
    with pytest.raises(ValueError, match="tier: got 'desktop', wanted one of smoke, desk, gpu, full"):
        collect(MemoryStore(), [], tier="desktop")


def test_a_setting_that_the_protocol_lost_since_does_not_break_the_report(paper):
    store = MemoryStore()
    kept = store.keep("crrelu", "better", "holds", settings={"depth": 3})
    assert shown(store, paper) == kept
    assert shown(store, paper, settings={"depth": 4}) == kept


def test_a_value_that_the_setting_refuses_by_now_is_compared_as_text(paper):
    store = MemoryStore()
    verdict = store.keep("crrelu", "better", "holds", settings={"epochs": "many"})
    assert shown(store, paper, settings={"epochs": "many"}) == verdict
    assert shown(store, paper, settings={"epochs": "20"}) is None


def test_the_report_of_the_database_is_that_of_memory(tmp_path):
    memory, papers = sample_store(), sample_papers()
    with open_store(tmp_path / "lab.sqlite") as store:
        store.put_machine(MACHINE)
        for spec, result in memory.known.values():
            store.put_trial(spec, result)
        for verdict in memory.verdicts:
            store.put_verdict(verdict)
        read = collect(store, papers)
    expected = collect(memory, papers)
    assert read.verdicts == expected.verdicts
    assert read.machines == expected.machines
    assert {key: spec.label for key, (spec, _) in read.trials.items()} == {
        key: spec.label for key, (spec, _) in expected.trials.items()
    }
    drawn = Results(papers[0], read)
    assert drawn.curves("more-accurate", "ASH", "test accuracy") == Results(papers[0], expected).curves(
        "more-accurate", "ASH", "test accuracy"
    )
