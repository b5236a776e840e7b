import copy
import pickle

import numpy as np
import torch

from paperworks.activations.sdm import SDMHead, sdm


def test_probabilities_are_those_of_the_estimator(fitted):
    classifier, _, (x, _) = fitted
    head = SDMHead(classifier.state_)
    features = torch.tensor(x, dtype=torch.float32)
    logits, q, d = head.evidence(features)
    result = classifier.select(x)
    assert q.tolist() == result.q.tolist()
    np.testing.assert_allclose(d, result.d, atol=1e-6)
    np.testing.assert_allclose(head(features).detach(), classifier.predict_proba(x), atol=1e-5)
    assert torch.equal(head(features), sdm(logits, q, d))


def test_leading_axes_and_no_points(fitted):
    head = SDMHead(fitted[0].state_)
    x = torch.randn(2, 3, 6)
    assert head(x).shape == (2, 3, 3)
    assert torch.allclose(head(x)[1, 2], head(x[1, 2][None])[0], atol=1e-6)
    assert head(torch.zeros(0, 6)).shape == (0, 3)


def test_gradient_flows_through_the_logits_alone(fitted):
    classifier, (x, _), _ = fitted
    head = SDMHead(classifier.state_)
    features = torch.tensor(x[:20], dtype=torch.float32, requires_grad=True)
    logits, q, d = head.evidence(features)
    assert not q.requires_grad
    assert not d.requires_grad
    (got,) = torch.autograd.grad(head(features)[:, 0].sum(), features)
    (wanted,) = torch.autograd.grad(sdm(logits, q, d)[:, 0].sum(), features)
    assert torch.allclose(got, wanted)
    assert (got[d == 0] == 0).all()


def test_keeps_its_state_through_copies(fitted):
    head, x = SDMHead(fitted[0].state_), torch.randn(5, 6)
    other = copy.deepcopy(head)
    other(x)  # its index is built, and stale after the next lines
    with torch.no_grad():
        other.exemplars += 1
        other.adaptor.conv.weight.zero_()
    other.load_state_dict(head.state_dict())
    for twin in (other, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(twin(x), head(x))
    assert head.double()(x.double()).dtype == torch.float64
