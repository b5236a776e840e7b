import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from activations.sdm.conftest import blobs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from paperworks.activations.sdm import (
    ExemplarAdaptor,
    LabelTypeError,
    SDMClassifier,
    SDMState,
    index_conditional_report,
    robust_offsets,
    robust_threshold,
    sdm_loss,
)
from paperworks.activations.sdm.training import affine_gradients, even_split, train_adaptor

FAST = {"alpha": 0.8, "rounds": 2, "epochs": 4, "lr": 1e-2, "num_filters": 8}


@parametrize_with_checks(
    [SDMClassifier(num_filters=64, lr=1e-2, rounds=1, epochs=8, random_state=0)],
    expected_failed_checks=lambda _: {
        "check_classifiers_train": "a point farther than every calibration point has d = 0 and uniform probabilities "
        "(Eq. 7): their argmax is class 0, the prediction is argmax z'"
    },
)
def test_is_a_scikit_learn_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny data sets: no threshold is found
        check(estimator)


def test_predictions_and_probabilities(fitted):
    classifier, _, (x, y) = fitted
    result = classifier.select(x)
    assert (classifier.predict(x) == result.prediction).all()
    assert classifier.score(x, y) > 0.8
    p = classifier.predict_proba(x)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    seen = result.d > 0
    assert (classifier.classes_[p.argmax(1)] == result.prediction)[seen].all()
    np.testing.assert_allclose(p[~seen], 1 / 3, atol=1e-6)


def test_admitted_points_are_more_accurate_and_outliers_are_not_admitted(fitted):
    classifier, _, (x, y) = fitted
    result = classifier.select(x)
    assert 0.1 < result.admitted.mean() < 1
    assert (result.prediction == y)[result.admitted].mean() > (result.prediction == y).mean()
    away = 40 * np.random.default_rng(0).normal(size=(50, 6))
    assert not classifier.select(away).admitted.any()
    assert (classifier.select(away).d == 0).all()


def test_report_counts_by_class_and_by_prediction(fitted):
    classifier, _, (x, y) = fitted
    result = classifier.select(x)
    report = index_conditional_report(y, result, 0.8)
    right = result.prediction == y
    for label in ("cat", "dog", "eel"):
        for key, group in (("by_class", y), ("by_prediction", result.prediction)):
            rows = result.admitted & (group == label)
            assert report[key][label] == {"count": rows.sum(), "accuracy": pytest.approx(right[rows].mean())}
    assert report["marginal"]["count"] == result.admitted.sum()
    nothing = index_conditional_report(y[:0], result[:0], 0.8)
    assert nothing["marginal"]["count"] == 0
    assert np.isnan(nothing["marginal"]["accuracy"])
    with pytest.raises(ValueError, match="y must have shape"):
        index_conditional_report(y[1:], result, 0.8)
    with pytest.raises(ValueError, match="labels like the predictions"):
        index_conditional_report(np.zeros(len(y), int), result, 0.8)


def test_result_becomes_a_table(fitted):
    pytest.importorskip("pandas", reason="to_frame needs pandas")
    classifier, _, (x, _) = fitted
    frame = classifier.select(x[:4]).to_frame()
    assert len(frame) == 4
    assert {"prediction", "admitted", "lower_0", "lower_2", "effective_n_1"} <= set(frame)


def test_best_round_and_robustness_over_rounds(fitted):
    classifier, _, _ = fitted
    state, rounds = classifier.state_, classifier.rounds_
    best = [max(h) for h in classifier.history_]
    assert best[classifier.best_round_] == max(best) == state.balanced_median_q
    assert classifier.best_round_ == max(j for j, b in enumerate(best) if b == max(best))  # ties: the later one
    q_mins = [r.threshold(0.8)[0] for r in rounds]
    assert state.q_min == q_mins[classifier.best_round_]
    assert state.q_min_robust == robust_threshold(state.q_min, q_mins, 0.8)
    assert state.offsets == robust_offsets([r.medians() for r in rounds], 0.8)


def test_splits_are_even_random_and_cover_the_pooled_data(fitted):
    classifier, (x, y), _ = fitted
    train, cal = classifier.train_index_, classifier.cal_index_
    assert sorted([*train, *cal]) == list(range(len(x)))
    assert abs(len(train) - len(cal)) <= 1
    assert (classifier.classes_[classifier.state_.y_cal] == y[cal]).all()
    labels = np.array([0, 0, 1, 1] + [2] * 6)
    for seed in range(30):
        parts = even_split(labels, np.random.default_rng(seed))
        assert all(set(labels[part]) == {0, 1, 2} and len(part) == 5 for part in parts)
        assert sorted(np.concatenate(parts)) == list(range(10))


def test_separate_calibration_data_is_pooled():
    x, y = blobs(120, seed=3)
    together = SDMClassifier(**FAST, random_state=4).fit(x, y)
    apart = SDMClassifier(**FAST, random_state=4).fit(x[:70], y[:70], x[70:], y[70:])
    assert torch.equal(together.state_.adaptor.conv.weight, apart.state_.adaptor.conv.weight)


def test_state_is_rebuilt_from_weights_and_data(fitted):
    classifier, (x, y), (fresh, _) = fitted
    s = classifier.state_
    indices = np.searchsorted(classifier.classes_, y)
    w = {name: t.numpy() for name, t in s.adaptor.state_dict().items()}
    rebuilt = SDMState.from_arrays(
        x[classifier.train_index_],
        indices[classifier.train_index_],
        x[classifier.cal_index_],
        indices[classifier.cal_index_],
        *(w[k] for k in ("conv.weight", "conv.bias", "fc.weight", "fc.bias", "norm_mean", "norm_std")),
        s.rescaler_weight,
        0.8,
        s.q_min_robust,
        s.offsets,
    )
    for name, value in classifier.state_.evaluate(fresh).items():
        assert np.array_equal(value, getattr(rebuilt.evaluate(fresh), name)), name


def test_seed_decides_everything_and_global_random_states_are_left_alone():
    x, y = blobs(90, seed=5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = [SDMClassifier(**FAST, random_state=seed).fit(x, y) for seed in (7, 7, 8)]
    weights = [m.state_.adaptor.conv.weight for m in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_number_of_threads_does_not_matter():
    x, y = blobs(300, features=20, seed=5)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            made = SDMClassifier(alpha=0.8, rounds=1, epochs=5, random_state=0).fit(x, y)
            weight = made.state_.adaptor.conv.weight.detach().numpy()
            results.append((weight, made.state_.rescaler_weight, made.select(x).lower))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


def test_closed_form_gradients_are_those_of_the_loss():
    a = ExemplarAdaptor(4, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    q, d = torch.tensor([0.0, 3.0, 1.0, 9.0, 2.0], dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    sdm_loss(a(x)[0], y, q, d).backward()
    got = affine_gradients(a, x, torch.nn.functional.one_hot(y, 3).double(), q, d)
    for gradient, parameter in zip(got, (a.conv.weight, a.conv.bias, a.fc.weight, a.fc.bias), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-12)


def test_first_epoch_is_adam_on_softmax_cross_entropy():
    x, y = blobs(40, seed=6)
    data = (torch.tensor(x, dtype=torch.float32), y, torch.tensor(x, dtype=torch.float32), y)
    a = ExemplarAdaptor(6, 3, 4, generator=torch.Generator().manual_seed(0))  # 2 D > M: no factorisation
    b = copy.deepcopy(a).fit_normalizer(data[0])
    train_adaptor(a, *data, epochs=1, batch_size=16, lr=1e-2, rng=np.random.default_rng(0))
    optimizer = torch.optim.Adam(b.parameters(), lr=1e-2)
    for rows in torch.from_numpy(np.random.default_rng(0).permutation(40)).split(16):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(b(data[0][rows])[0], torch.tensor(y)[rows]).backward()
        optimizer.step()
    for one, two in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_metric_is_the_balanced_median_similarity_of_the_best_epoch(fitted):
    classifier, _, _ = fitted
    s = classifier.state_
    medians = [np.median(s.cal_q[s.y_cal == c]) for c in range(3)]
    assert max(classifier.history_[classifier.best_round_]) == pytest.approx(np.mean(medians))


def test_saved_estimator_gives_the_same_verdicts(fitted, tmp_path):
    classifier, _, (x, _) = fitted
    classifier.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["sdm.json", "sdm.safetensors"]
    loaded = SDMClassifier.load(tmp_path / "model")
    assert loaded.get_params()["rounds"] == 3
    assert loaded.classes_.tolist() == ["cat", "dog", "eel"]
    for name, value in classifier.select(x).items():
        assert np.array_equal(value, getattr(loaded.select(x), name)), name
    assert str(loaded.explain(x[:3])) == str(classifier.explain(x[:3]))
    assert loaded.at_alpha(0.7).q_min_robust == classifier.at_alpha(0.7).q_min_robust
    (tmp_path / "model" / "sdm.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        SDMClassifier.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        SDMClassifier.load(tmp_path / "nowhere")


def test_an_estimator_that_rejects_everything_is_saved_too(tmp_path):
    x, y = blobs(60, seed=3)
    y = np.random.default_rng(0).permutation(y)
    with pytest.warns(UserWarning, match="every point will be rejected"):
        made = SDMClassifier(**FAST | {"alpha": 0.99}, random_state=np.random.RandomState(0)).fit(x, y)
    assert not made.select(x).admitted.any()
    made.save(tmp_path)
    loaded = SDMClassifier.load(tmp_path)
    assert loaded.state_.q_min_robust == np.inf
    assert loaded.classes_.dtype == y.dtype


def test_survives_copying(fitted):
    classifier, _, (x, _) = fitted
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert (twin.select(x).lower == classifier.select(x).lower).all()
    assert not hasattr(clone(classifier), "state_")


def test_warm_start_begins_with_given_weights(fitted):
    classifier, (x, y), _ = fitted
    settings = {"alpha": 0.8, "rounds": 1, "epochs": 1, "random_state": 0}
    cold = SDMClassifier(**settings, num_filters=16, lr=1e-9).fit(x, y)
    for source in (classifier, classifier.state_.adaptor):
        warm = SDMClassifier(**settings, warm_start=source, lr=1e-9).fit(x, y)
        assert torch.allclose(warm.state_.adaptor.fc.weight, classifier.state_.adaptor.fc.weight, atol=1e-6)
        assert warm.state_.balanced_median_q > cold.state_.balanced_median_q
    again = cold.set_params(warm_start=True).fit(x, y)
    assert again.state_.adaptor.conv.out_features == 16
    with pytest.raises(ValueError, match="warm_start"):
        SDMClassifier(**settings, warm_start=classifier).fit(x[:, :3], y)
    with pytest.raises(TypeError, match="warm_start"):
        SDMClassifier(**settings, warm_start="yes").fit(x, y)
    with pytest.raises(NotFittedError):
        SDMClassifier(**settings, warm_start=SDMClassifier()).fit(x, y)


def test_paper_rescaler_is_near_the_batch_one():
    x, y = blobs(24, seed=6)
    made = [SDMClassifier(**FAST | {"rounds": 1}, rescaler=r, random_state=0).fit(x, y) for r in ("paper", "batch")]
    assert torch.equal(made[0].state_.adaptor.conv.weight, made[1].state_.adaptor.conv.weight)
    assert not np.allclose(made[0].state_.rescaler_weight, made[1].state_.rescaler_weight)


def test_progress_is_shown_on_request(capsys):
    x, y = blobs(60, seed=3)
    SDMClassifier(**FAST | {"rounds": 1}, random_state=0, verbose=True).fit(x, y)
    assert "SDM fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1 / 3}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"rounds": 0}, "rounds"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_filters": -1}, "num_filters"),
        ({"lr": 0.0}, "lr"),
        ({"rescaler": "none"}, "rescaler"),
    ],
)
def test_bad_settings_are_named(settings, message):
    x, y = blobs(30)
    with pytest.raises(ValueError, match=message):
        SDMClassifier(**settings).fit(x, y)


def test_bad_data_is_named():
    x, y = blobs(30)
    with pytest.raises(ValueError, match="2 classes"):
        SDMClassifier().fit(x, np.zeros(30, int))
    with pytest.raises(ValueError, match="at least 2 points"):
        SDMClassifier().fit(x, np.r_[np.zeros(29, int), 1])
    with pytest.raises(ValueError, match="NaN"):
        SDMClassifier().fit(np.where(x > 3, np.nan, x), y)
    with pytest.raises(ValueError, match="y_cal=None"):
        SDMClassifier().fit(x, y, x)
    with pytest.raises(ValueError, match=r"y_cal must hold the classes of y: missing \[2\]"):
        SDMClassifier().fit(x, y, x, np.minimum(y, 1))
    with pytest.raises(ValueError, match=r"unknown \[3\]"):
        SDMClassifier().fit(x, y, x, np.where(y == 2, 3, y))
    with pytest.raises(ValueError, match="y_cal must have shape"):
        SDMClassifier().fit(x, y, x, y[1:])
    for kind in (TypeError, ValueError, LabelTypeError):
        with pytest.raises(kind, match="labels of one type"):
            SDMClassifier().fit(x, y, x, y.astype(str))


def test_use_before_fit():
    for use in ("predict", "predict_proba", "select", "explain"):
        with pytest.raises(NotFittedError):
            getattr(SDMClassifier(), use)(np.zeros((1, 2)))
    for use in ("save", "at_alpha"):
        with pytest.raises(NotFittedError):
            getattr(SDMClassifier(), use)(0.9)


def test_activation_needs_neither_scikit_learn_nor_scipy():
    code = (
        "import sys; from paperworks.activations.sdm import sdm, SupportIndex, ECDF, VerifiedHead, SDMState\n"
        "assert not {'sklearn', 'scipy', 'faiss', 'pandas', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    import paperworks.activations.sdm as package

    assert all(hasattr(package, name) for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
