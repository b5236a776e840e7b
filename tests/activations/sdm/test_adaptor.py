import copy
import pickle

import numpy as np
import pytest
import torch

from paperworks.activations.sdm import ExemplarAdaptor


def adaptor(**options):
    return ExemplarAdaptor(5, 3, 8, generator=torch.Generator().manual_seed(0), **options)


def test_state_keys_and_shapes():
    shapes = {name: tuple(t.shape) for name, t in adaptor().state_dict().items()}
    assert shapes == {
        "conv.weight": (8, 5),
        "conv.bias": (8,),
        "fc.weight": (3, 8),
        "fc.bias": (3,),
        "norm_mean": (),
        "norm_std": (),
    }
    assert ExemplarAdaptor(5, 2).conv.out_features == 1000


def test_is_one_convolution_over_the_whole_input_and_affine():
    a, x = adaptor(), torch.randn(4, 5)
    convolution = torch.nn.functional.conv1d(x[:, None], a.conv.weight[:, None], a.conv.bias, stride=5)[..., 0]
    logits, exemplar = a(x)
    assert torch.allclose(exemplar, convolution, atol=1e-6)
    assert torch.allclose(logits, convolution @ a.fc.weight.T + a.fc.bias, atol=1e-6)
    mixed = a(0.3 * x[:1] + 0.7 * x[1:2])[1]
    assert torch.allclose(mixed, 0.3 * exemplar[:1] + 0.7 * exemplar[1:2], atol=1e-6)


def test_normaliser_is_one_scalar_over_all_entries():
    x = torch.randn(20, 5, dtype=torch.float64) * torch.arange(1, 6) + 3
    a = adaptor(dtype=torch.float64).fit_normalizer(x)
    assert a.norm_mean.item() == pytest.approx(x.numpy().mean())
    assert a.norm_std.item() == pytest.approx(x.numpy().std(ddof=1))
    assert adaptor().fit_normalizer(torch.ones(3, 5)).norm_std.item() == 1.0


def test_projection_is_the_forward_pass_and_the_same_in_any_batch():
    a, x = adaptor().fit_normalizer(torch.randn(30, 5)), torch.randn(300, 5)
    logits, exemplar = a.project(x)
    for got, wanted in zip((logits, exemplar), a(x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)
        assert got.dtype == torch.float32
    assert torch.equal(torch.cat([a.project(row[None])[1] for row in x]), exemplar)


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    assert torch.equal(adaptor().conv.weight, adaptor().conv.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert adaptor().conv.weight.abs().max() <= 1 / np.sqrt(5)


def test_keeps_its_state_through_copies_and_takes_convolution_weights():
    a = adaptor().fit_normalizer(torch.randn(9, 5))
    x = torch.randn(2, 5)
    state = a.state_dict()
    state["conv.weight"] = state["conv.weight"][:, None]
    other = adaptor()
    other.load_state_dict(state)
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), other):
        assert torch.equal(twin(x)[0], a(x)[0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_classes"):
        ExemplarAdaptor(5, 1)
    with pytest.raises(ValueError, match="features"):
        adaptor()(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="finite"):
        adaptor().fit_normalizer(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="two entries"):
        adaptor().fit_normalizer(torch.zeros(1, 1))
