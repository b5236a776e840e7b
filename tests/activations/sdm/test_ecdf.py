import numpy as np
import pytest
from activations.sdm import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.sdm import ECDF
from paperworks.activations.sdm.ecdf import distance_quantile

numbers = st.lists(st.integers(-3, 3).map(float), max_size=12)


@settings(max_examples=60, deadline=None)
@given(values=numbers, points=numbers, saturate=st.booleans())
def test_counts_strictly_smaller_values(values, points, saturate):
    expected = [reference.ecdf(values, v, saturate) for v in points]
    assert ECDF(values, saturate)(np.array(points)).tolist() == expected


def test_ends_of_the_distribution():
    e = ECDF([1.0, 2.0, 2.0, 4.0])
    assert e([1.0, 2.0, 2.5, 4.0, 4.5]).tolist() == [0.0, 0.25, 0.75, 0.75, 1.0]
    assert ECDF([1.0, 2.0, 2.0, 4.0], saturate=True)([2.0, 4.0, 9.0]).tolist() == [0.25, 1.0, 1.0]


def test_float32_values_that_saturate_at_one_are_all_the_maximum():
    p = np.array([0.5, 1.0 - 1e-9, 1.0], dtype=np.float32)
    assert ECDF(p, saturate=True)(p).tolist() == [0.0, 1.0, 1.0]


def test_distance_quantile_is_1_at_0_and_0_beyond_the_maximum_of_a_class():
    ecdfs = [ECDF([1.0, 2.0]), ECDF([1.5, 3.0])]
    assert distance_quantile(np.array([0.0, 1.2, 2.5, 9.0]), ecdfs).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert distance_quantile(np.array([0.0, 1.0]), [ECDF([1.0]), ECDF([])]).tolist() == [0.0, 0.0]


def test_shapes_and_nan():
    assert ECDF([1.0])(np.zeros((2, 3))).shape == (2, 3)
    assert ECDF([1.0])(0.5).shape == ()
    with pytest.raises(ValueError, match="values"):
        ECDF([1.0, float("nan")])
