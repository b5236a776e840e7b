import copy

import numpy as np
import pytest

from paperworks.activations.sdm import find_label_errors


def test_exemplars_are_the_nearest_training_points_and_the_first_q_match(fitted):
    classifier, (_x, y), (fresh, _) = fitted
    explained = classifier.explain(fresh[:40], k=4)
    assert len(explained) == 40
    for i, point in enumerate(explained.points):
        assert len(point.exemplars) == 4
        distances = [w.distance for w in point.exemplars]
        assert distances == sorted(distances)
        assert distances[0] == pytest.approx(explained.result.d_nearest[i], rel=1e-6)
        for rank, w in enumerate(point.exemplars):
            assert w.row in set(classifier.train_index_.tolist())
            assert w.label == y[w.row]
            assert w.matched == (rank < point.q)
            if w.matched:
                assert w.label == w.prediction == point.prediction
        if point.q < 4:
            w = point.exemplars[point.q]
            assert not (w.label == w.prediction == point.prediction)


def test_twins_share_prediction_and_bin(fitted):
    classifier, (_, y), (fresh, _) = fitted
    s = classifier.state_
    explained = classifier.explain(fresh[:30], k=3)
    for point in explained.points:
        c = classifier.classes_.tolist().index(point.prediction)
        same = (s.cal_pred == c) & (np.floor(s.cal_soft_q) == np.floor(point.soft_q))
        assert point.twin_count == same.sum()
        assert len(point.twins) == min(3, same.sum())
        if same.any():
            assert point.twin_accuracy == pytest.approx((s.y_cal == c)[same].mean())
        for w in point.twins:
            assert w.label == y[w.row]
            assert w.matched == (w.label == point.prediction)


def test_text_table_and_page(fitted):
    classifier, _, (fresh, _) = fitted
    explained = classifier.explain(fresh[:2], k=2)
    assert "exemplar" in str(explained)
    assert ("admitted" in str(explained[0])) == explained[0].admitted
    assert len(explained.rows()) == sum(len(p.exemplars) + len(p.twins) for p in explained.points)
    page = explained.to_html()
    assert page.count("<table>") == 2
    assert page.startswith('<section class="sdm-explanation">')
    pytest.importorskip("pandas", reason="to_frame needs pandas")
    assert len(explained.to_frame()) == len(explained.rows())


def test_page_escapes_labels(fitted):
    classifier = copy.copy(fitted[0])
    classifier.classes_ = np.array(["<b>", "&", "c"], dtype=object)
    page = classifier.explain(fitted[2][0][:30]).to_html()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_label_errors_are_found_and_ranked(fitted):
    classifier, _, (x, y) = fitted
    clean = classifier.label_errors(x, y)
    wrong = y.copy()
    changed = np.flatnonzero(classifier.select(x).admitted)[:10]
    wrong[changed] = np.where(y[changed] == "cat", "dog", "cat")
    found = classifier.label_errors(x, wrong)
    assert set(changed.tolist()) - {e.row for e in clean} <= {e.row for e in found}
    probabilities = [e.probability for e in found]
    assert probabilities == sorted(probabilities, reverse=True)
    for e in found:
        assert e.label == wrong[e.row] != e.prediction
    with pytest.raises(ValueError, match="y must have shape"):
        find_label_errors(y[1:], classifier.select(x))


def test_k_must_be_positive(fitted):
    with pytest.raises(ValueError, match="k must"):
        fitted[0].explain(fitted[2][0], k=0)
