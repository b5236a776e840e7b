"""Selective classification: what is judged, what it is judged on, and that the baselines are what they are called."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from papers.protocols.embedding_files import write_answers, write_embeddings

from paperworks.activations.sdm import CalibrationOutputs, ExemplarAdaptor
from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.selective import METRICS, selective_classification, verification_time
from paperworks.papers.protocols.selective_arms import (
    SDM,
    Conformal,
    CrossEntropyStack,
    Decisions,
    Softmax,
    by_probability,
    conformal_sets,
    fit_temperature,
    softmax,
    spread_correlation,
    train_cross_entropy,
)
from paperworks.papers.protocols.selective_data import Points, noisy, points_signature, rotated, select_points
from paperworks.papers.protocols.selective_trials import judge, risk_coverage_area, state_of_size

ARMS = "paperworks.papers.protocols.selective_arms"


def trial_of(seed: int = 0, **given: object) -> Trial:
    return Trial(seed, "smoke", "cpu", complete(selective_classification, "smoke", {}, given))


def decisions(prediction: list[int], admitted: list[bool]) -> Decisions:
    kept = np.array(admitted)
    return Decisions(np.array(prediction), kept, np.zeros(len(kept)), kept)


# --- judging ---


def test_what_is_admitted_is_judged_by_class_and_by_prediction():
    found = judge(decisions([0, 0, 0, 1, 1, 1], [True, True, True, True, True, False]), np.array([0, 0, 1, 1, 1, 0]))
    assert found == pytest.approx(
        {
            "share": 5 / 6,
            "error": 1 / 5,
            "accuracy": 4 / 6,
            "lowest_by_class": 2 / 3,  # of true class 1
            "lowest_by_prediction": 2 / 3,  # of predicted class 0
        }
    )


def test_what_has_no_right_class_is_wrong_once_it_is_admitted():
    found = judge(decisions([0, 1, 1], [True, True, False]), np.array([0, -99, -99]))
    assert found["error"] == 0.5
    assert found["lowest_by_class"] == 1.0
    assert found["lowest_by_prediction"] == 0.0


def test_an_arm_that_admits_nothing_makes_no_error():
    found = judge(decisions([0, 1], [False, False]), np.array([1, 0]))
    assert found == {"share": 0, "error": 0, "accuracy": 0, "lowest_by_class": 1, "lowest_by_prediction": 1}


@given(
    hnp.arrays(np.int64, 30, elements=st.integers(0, 3)),
    hnp.arrays(np.int64, 30, elements=st.sampled_from([-99, 0, 1, 2, 3])),
    hnp.arrays(np.bool_, 30),
)
def test_no_number_is_ever_undefined(prediction, y, admitted):
    found = judge(Decisions(prediction, admitted, np.zeros(30), admitted), y)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["error"] <= 1 - found["lowest_by_prediction"] + 1e-12, "the mean is above the least group"


def test_risk_and_coverage_of_orders_by_hand():
    right = np.array([True, True, False])
    assert risk_coverage_area(np.array([3.0, 2.0, 1.0]), right) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert risk_coverage_area(np.array([1.0, 2.0, 3.0]), right) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert risk_coverage_area(np.zeros(3), right) == pytest.approx(1 / 3), "ties count as their mean"


# --- points ---


def test_digits_are_divided_anew_by_every_seed_and_told_apart_at_five():
    first, again, other = (select_points(trial_of(seed)) for seed in (0, 0, 1))
    assert len(first.fit) == 500
    assert len(first.tests[""]) == 1797 - 500
    assert first.classes == 2
    assert np.array_equal(first.fit.x, again.fit.x)
    assert np.array_equal(first.tests["_noise0.35"].x, again.tests["_noise0.35"].x)
    assert not np.array_equal(first.fit.x, other.fit.x)
    digits = select_points(trial_of(0, task="classes"))
    assert np.array_equal(digits.fit.y >= 5, first.fit.y == 1)
    assert set(first.tests) == {"", "_rotate25", "_rotate45", "_noise0.35", "_shifted"}
    assert np.array_equal(first.tests["_shifted"].x, first.tests[""].x), "nothing given"


def test_at_most_three_quarters_are_fitted_on():
    assert len(select_points(trial_of(0, fit_size=0)).fit) == 1797 * 3 // 4


def test_embeddings_keep_strangers_for_the_test(tmp_path):
    spec = write_embeddings(tmp_path / "a.jsonl", n=40)
    with (tmp_path / "a.jsonl").open("a") as file:
        for label in (-99, -1):
            values = ", ".join(["0.5"] * 12)
            file.write(f'{{"id": "x", "label": {label}, "document": "", "embedding": [{values}]}}\n')
    found = select_points(trial_of(0, data=spec, fit_size=20))
    assert len(found.fit) == 20
    assert np.bincount(found.fit.y).tolist() == [10, 10], "every class in its share"
    assert sorted(set(found.tests[""].y)) == [-99, 0, 1]
    assert len(found.tests[""]) == 21, "without the unlabelled row"
    assert found.tests[""].x.shape[1] == 12


def test_a_test_part_and_data_from_elsewhere_may_be_given(tmp_path):
    data = write_embeddings(tmp_path / "a.jsonl", n=40)
    test = write_embeddings(tmp_path / "b.jsonl", n=10, seed=1)
    shifted = write_embeddings(tmp_path / "c.jsonl", n=8, seed=2)
    found = select_points(trial_of(0, data=data, test=test, shifted=shifted))
    assert [len(found.fit), len(found.tests[""]), len(found.tests["_shifted"])] == [40, 10, 8]


def test_data_that_does_not_fit_is_refused(tmp_path):
    data = write_embeddings(tmp_path / "a.jsonl", n=40)
    narrow = write_embeddings(tmp_path / "b.jsonl", n=10, features=5)
    with pytest.raises(ValueError, match=r"shape \(5,\).*wanted.*\(12,\)"):
        select_points(trial_of(0, data=data, shifted=narrow))
    with pytest.raises(ValueError, match="no file"):
        points_signature(f"jsonl:{tmp_path}/none.jsonl")


def test_the_signature_follows_the_file(tmp_path):
    spec = write_embeddings(tmp_path / "a.jsonl")
    before = points_signature(spec)
    write_embeddings(tmp_path / "a.jsonl", seed=1)
    assert points_signature(spec) != before
    assert points_signature("") == ""
    assert points_signature("digits").startswith("digits-")


def test_turned_images_are_turned():
    images = Points(np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32), np.zeros(3, np.int64))
    turned = rotated(images, 90, Trial(), images).x
    assert np.allclose(turned, np.rot90(images.x, axes=(2, 3)), atol=1e-6) or np.allclose(
        turned, np.rot90(images.x, -1, axes=(2, 3)), atol=1e-6
    )


@given(st.integers(2, 9), st.floats(0, 180))
def test_turned_embeddings_keep_their_distance_from_the_mean(features, degrees):
    points = Points(np.random.default_rng(0).random((5, features), dtype=np.float32), np.zeros(5, np.int64))
    turned = rotated(points, degrees, Trial(), points)
    mean = points.x.mean(0)
    norms = [np.linalg.norm(p.x - mean, axis=1) for p in (points, turned)]
    assert np.allclose(*norms, atol=1e-5)
    if features % 2 == 0:
        cosines = ((points.x - mean) * (turned.x - mean)).sum(1) / norms[0] ** 2
        assert np.allclose(cosines, math.cos(math.radians(degrees)), atol=1e-4)


def test_noise_is_in_units_of_pixels_or_of_the_embedding():
    images = Points(np.zeros((200, 1, 8, 8), np.float32), np.zeros(200, np.int64))
    assert noisy(images, Trial(), images).x.std() == pytest.approx(0.35, rel=0.02)
    embeddings = Points(np.random.default_rng(0).normal(0, 10, (500, 20)).astype(np.float32), np.zeros(500, np.int64))
    moved = noisy(embeddings, Trial(), embeddings).x - embeddings.x
    assert moved.std() == pytest.approx(3.5, rel=0.05)


# --- baselines ---


def test_the_stack_trains_each_adaptor_as_torch_does():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 30, 4, generator=generator), torch.randint(0, 3, (2, 6, 30), generator=generator)
    adaptors = [ExemplarAdaptor(4, 3, 8, generator=generator).fit_normalizer(x[j].flatten(0, 1)) for j in range(2)]
    stack = CrossEntropyStack([ExemplarAdaptor(4, 3, 8) for _ in adaptors], lr=0.01)
    for own, other in zip(stack.adaptors, adaptors, strict=True):
        own.load_state_dict(other.state_dict())
    stack = CrossEntropyStack(stack.adaptors, lr=0.01)
    for step in range(6):
        stack.step(x[:, step], y[:, step])
    for j, adaptor in enumerate(adaptors):
        optimizer = torch.optim.Adam(adaptor.parameters(), lr=0.01)
        for step in range(6):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(adaptor(x[j, step])[0], y[j, step]).backward()
            optimizer.step()
        for expected, found in zip(adaptor.parameters(), stack.adaptor(j).parameters(), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_baseline_learns_and_keeps_a_calibration_half():
    trial = trial_of(3, epochs=30)
    selection = select_points(trial)
    trained = train_cross_entropy(selection.fit, 2, trial)
    assert len(trained.y_cal) == 250
    accuracy = (trained.logits(selection.tests[""].rows).argmax(1) == selection.tests[""].y).mean()
    assert accuracy > 0.75
    rows = {row.tobytes() for row in selection.fit.rows}
    assert all(row.numpy().tobytes() in rows for row in trained.x_cal)


def test_the_temperature_that_labels_were_drawn_at_is_found():
    generator = np.random.default_rng(0)
    logits = 2 * generator.standard_normal((20_000, 3))
    labels = (softmax(logits).cumsum(1) < generator.random((20_000, 1))).sum(1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)
    assert fit_temperature(logits / 2, labels) == pytest.approx(0.5, rel=0.03)


def test_probabilities_are_admitted_from_the_level_on():
    found = by_probability(np.array([[0.95, 0.05], [0.06, 0.94]]), 0.95)
    assert found.admitted.tolist() == [True, False]
    assert found.prediction.tolist() == [0, 1]


@pytest.mark.parametrize("score", ["aps", "raps"])
def test_prediction_sets_are_those_of_mapies_own_classifier(score):
    pytest.importorskip("mapie", reason="the sets are MAPIE's")
    from mapie.classification import SplitConformalClassifier
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    x = generator.standard_normal((600, 5))
    y = (x @ generator.standard_normal((5, 4)) + generator.gumbel(size=(600, 4))).argmax(1)
    model = LogisticRegression().fit(x[:200], y[:200])
    cal, test = slice(200, 400), slice(400, 600)
    own = SplitConformalClassifier(model, confidence_level=0.9, conformity_score=score, random_state=7)
    expected = own.conformalize(x[cal], y[cal]).predict_set(x[test])[1][:, :, 0]
    found = conformal_sets(score, model.predict_proba(x[cal]), y[cal], model.predict_proba(x[test]), 0.1, 7)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("score", ["aps", "raps"])
def test_prediction_sets_of_two_classes_cover(score):
    pytest.importorskip("mapie", reason="the sets are MAPIE's")
    generator = np.random.default_rng(0)
    probability = generator.beta(1, 1, (6000, 1))
    probability = np.hstack([probability, 1 - probability])
    y = (generator.random(6000) > probability[:, 0]).astype(int)
    sets = conformal_sets(score, probability[:3000], y[:3000], probability[3000:], 0.1, 0)
    assert sets.shape == (3000, 2)
    assert sets[np.arange(3000), y[3000:]].mean() >= 0.88
    assert 0.05 < (sets.sum(1) == 1).mean() < 1


def test_options_that_are_none_are_refused():
    with pytest.raises(ValueError, match="aps or raps"):
        Conformal("lac")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lower or centroid"):
        SDM("upper")  # type: ignore[arg-type]


# --- the method's arm ---


def outputs_of(spreads: list[float], rounds: int = 6) -> list[CalibrationOutputs]:
    """Rounds whose median output in bin b is 0.9 +- spreads[b], for one predicted class."""
    found = []
    for j in range(rounds):
        own = np.array([0.9 + s * (1 if j % 2 else -1) for s in spreads])
        zeros = np.zeros(len(own), np.int64)
        output = np.stack([own, 1 - own], 1)
        found.append(CalibrationOutputs(zeros, zeros, output, np.arange(len(own)) + 0.5, zeros.astype(bool)))
    return found


def test_the_spread_is_ranked_against_its_bins():
    assert spread_correlation(outputs_of([0.08, 0.05, 0.02, 0.01]), None) == pytest.approx(-0.5)  # class 1 has none: 0
    assert spread_correlation(outputs_of([0.01, 0.02, 0.05, 0.08]), None) == pytest.approx(0.5)
    assert spread_correlation(outputs_of([0.02, 0.02, 0.02]), None) == 0
    shuffled = {
        spread_correlation(outputs_of([0.08, 0.05, 0.02, 0.01]), np.random.default_rng(seed)) for seed in range(8)
    }
    assert len(shuffled) > 3


def test_without_its_bound_it_admits_more_and_both_say_how_much():
    trial = trial_of(2, rounds=1, epochs=25, fit_size=900)
    selection = select_points(trial)
    lower, centroid = SDM(), SDM("centroid")
    for arm in (lower, centroid):
        arm.fit(selection.fit, 2, trial)
    found, without = (arm.decide(selection.tests[""].rows) for arm in (lower, centroid))
    assert np.array_equal(found.centroid_admitted, without.admitted)
    assert np.array_equal(found.score, without.score), "one model, one order"
    assert found.admitted.sum() < without.admitted.sum()
    assert without.admitted[found.admitted].mean() > 0.95


# --- whole trials ---


@pytest.mark.parametrize(
    "arm",
    [
        Arm("SDM", f"{ARMS}:SDM"),
        Arm("shuffled", f"{ARMS}:SDM", {"shuffle_labels": True, "shuffle_spread": True}),
        Arm("softmax", f"{ARMS}:Softmax"),
        Arm("temperature", f"{ARMS}:Softmax", {"temperature": True}),
    ],
    ids=lambda arm: arm.name,
)
@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_a_trial_gives_every_metric_and_the_same_again(arm):
    found = selective_classification.function(trial_of(5), arm)
    assert set(found) == set(selective_classification.metrics) >= set(METRICS)
    assert all(math.isfinite(value) for value in found.values())
    assert found == selective_classification.function(trial_of(5), arm)


@pytest.mark.filterwarnings("ignore:no threshold reaches")
def test_embeddings_in_files_are_judged(tmp_path):
    data = write_embeddings(tmp_path / "a.jsonl", distance=5.0)
    shifted = write_embeddings(tmp_path / "b.jsonl", n=50, seed=1, distance=0.0)
    trial = trial_of(0, data=data, shifted=shifted, epochs=40)
    everything = Arm("no rejecting", f"{ARMS}:Softmax", {"threshold": 0.0})
    found = selective_classification.function(trial, everything)
    assert found["share"] == found["share_shifted"] == 1
    assert found["error"] == pytest.approx(1 - found["accuracy"])
    assert found["accuracy"] > 0.9
    assert 0.25 < found["accuracy_shifted"] < 0.75, "classes that do not differ"
    sdm = selective_classification.function(trial, Arm("SDM", f"{ARMS}:SDM"))
    assert sdm["share"] <= 1


def test_stated_confidence_is_taken_at_its_word(tmp_path):
    data = write_answers(tmp_path / "answers.jsonl")
    stated = Arm("stated", f"{ARMS}:StatedConfidence")
    found = selective_classification.function(trial_of(0, data=data, answers="1", task="classes"), stated)
    assert 0.2 < found["share"] < 0.5, "a third states .99"
    assert found["error"] < 0.15
    with pytest.raises(ValueError, match="answers"):
        selective_classification.function(trial_of(0, data=data, task="classes"), stated)


def test_the_time_of_a_verdict_and_of_its_search_are_measured():
    settings = complete(verification_time, "smoke", {}, {"support": "1000", "features": "32", "filters": "64"})
    size = "paperworks.papers.protocols.selective_trials:support_size"
    for options in ({}, {"size": 100}):
        found = verification_time.function(Trial(0, "smoke", "cpu", settings), Arm("", size, options))
        assert set(found) == set(verification_time.metrics)
        assert found["search_share"] > 0
        assert found["seconds"] > 0


def test_the_timed_estimator_is_a_whole_one():
    trial = Trial(0, settings={"features": 24, "filters": 40, "queries": 12})
    state, x = state_of_size(trial, 500)
    result = state.evaluate(x)
    assert x.shape == (12, 24)
    assert (result.d_nearest > 0).all()
    assert len(state.index) == 500
    # the exemplars are those of embeddings u A under the adaptor
    generator = trial.generator("points")
    adaptor = ExemplarAdaptor(24, 2, 40, generator=generator)
    basis = torch.randn(64, 24, generator=generator)
    u = torch.randn(500, 64, generator=generator)
    torch.testing.assert_close(adaptor(u @ basis)[1], state.index.exemplars, atol=1e-3, rtol=1e-3)


def test_a_baseline_with_threshold_zero_admits_everything():
    trial = trial_of(1)
    selection = select_points(trial)
    arm = Softmax(threshold=0.0)
    arm.fit(selection.fit, 2, trial)
    assert arm.decide(selection.tests[""].rows).admitted.all()
