"""Models of meaning and the vectors that are kept of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.meaning import EXACT, LSA, PACKAGE, MiniLM, unit
from paperworks.feed.vectors import BLOCK, Vectors

TEXTS = [
    "The cat sat on the mat with another cat.",
    "A kitten and a cat play on a mat.",
    "Stocks fell while bond markets rose.",
    "Bond yields rise as stocks fall again.",
    "Rain falls on the mountain.",
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("sentence_transformers") is None,
    reason="the model is not installed: pip install 'paperworks[search]'",
)


def test_vectors_are_of_unit_length_or_zero() -> None:
    model = LSA(5).fit(TEXTS)
    found = model.embed([*TEXTS, "zzz qqq", "", "the of"])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(found[:5], axis=1), 1, rtol=1e-5)
    assert not found[5:].any()


def test_texts_on_one_subject_are_near() -> None:
    near = (v := LSA(2).fit(TEXTS).embed(TEXTS)) @ v.T
    assert near[0, 1] > 0.9 > 0.2 > abs(near[0, 2])
    assert near[2, 3] > 0.9


def test_all_dimensions_are_the_cosine_of_tf_idf() -> None:
    """With as many dimensions as texts nothing is lost, and TF-IDF is scikit-learn's, with sublinear counts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from paperworks.feed.meaning import _features

    x = TfidfVectorizer(analyzer=_features, sublinear_tf=True).fit_transform(TEXTS)
    v = LSA(128).fit(TEXTS).embed(TEXTS)
    np.testing.assert_allclose(v @ v.T, (x @ x.T).toarray(), atol=1e-5)


def test_the_exact_and_the_randomised_decomposition_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = LSA(3).fit(TEXTS).embed(TEXTS)
    monkeypatch.setattr("paperworks.feed.meaning.EXACT", 0)
    other = LSA(3).fit(TEXTS).embed(TEXTS)
    assert len(TEXTS) < EXACT
    np.testing.assert_allclose(exact @ exact.T, other @ other.T, atol=1e-4)


def test_a_fit_is_named_after_what_it_knows_and_survives_as_bytes() -> None:
    model = LSA(3).fit(TEXTS)
    assert model.name == LSA(3).fit(TEXTS).name != LSA(3).fit(TEXTS[:4]).name
    assert model.name.startswith(LSA(3).family)
    again = LSA(3).from_bytes(model.to_bytes(), model.name)
    np.testing.assert_array_equal(again.embed(TEXTS), model.embed(TEXTS))


def test_a_fit_on_nothing_knows_nothing() -> None:
    for texts in ([], [""], ["the of and"]):
        model = LSA().fit(texts)
        assert not model.embed(["cat"]).any()
        assert not LSA().from_bytes(model.to_bytes(), model.name).embed(["cat"]).any()
    assert not LSA().embed(["not fitted"]).any()
    with pytest.raises(ValueError, match="dimensions: got 0"):
        LSA(0)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_has_a_vector(texts: list[str]) -> None:
    model = LSA(4).fit(TEXTS)
    found = model.embed(texts)
    assert found.shape == (len(texts), 4)
    assert np.isfinite(found).all()


# vectors


def drawn(count: int, dimensions: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, dimensions)))


@pytest.mark.parametrize("int8", [False, True])
@given(data=st.data())
def test_the_nearest_are_those_with_the_largest_products(int8: bool, data: st.DataObject) -> None:
    held = Vectors(8, int8=int8)
    known: dict[int, NDArray[np.float32]] = {}
    for step in range(data.draw(st.integers(1, 5))):
        numbers = data.draw(st.lists(st.integers(1, 60), unique=True, max_size=20))
        vectors = drawn(len(numbers), seed=step)
        if step % 2 and data.draw(st.booleans()):
            held.drop(np.array(numbers, np.int64))
            known = {n: v for n, v in known.items() if n not in numbers}
        else:
            held.put(np.array(numbers, np.int64), vectors)
            known |= dict(zip(numbers, vectors, strict=True))
    assert len(held) == len(known)
    query = drawn(1, seed=99)[0]
    among = data.draw(st.none() | st.lists(st.integers(1, 70), unique=True, max_size=30).map(sorted))
    limit = data.draw(st.integers(1, 70))
    asked = None if among is None else np.array(among, np.int64)
    near = held.nearest(query, limit, asked)
    wanted = {n: float(v @ query) for n, v in known.items() if among is None or n in among}
    products = sorted((p for p in wanted.values() if p > 0.02), reverse=True)
    assert [p for _, p in near] == sorted((p for _, p in near), reverse=True)
    assert len(near) <= limit
    np.testing.assert_allclose(
        [p for _, p in near][: len(products)], products[: len(near)], atol=0.02 if int8 else 1e-6
    )
    for number, product in near:
        assert product == pytest.approx(wanted[number], abs=0.02 if int8 else 1e-6)


def test_8_bits_find_what_32_find() -> None:
    vectors, numbers = drawn(2 * BLOCK + 7, 32), np.arange(1, 2 * BLOCK + 8)
    exact, small = Vectors(32), Vectors(32, int8=True)
    exact.put(numbers, vectors)
    small.put(numbers, vectors)
    assert small.nbytes < 0.5 * exact.nbytes
    shared = 0
    for query in drawn(20, 32, seed=5):
        shared += len({n for n, _ in exact.nearest(query, 50)} & {n for n, _ in small.nearest(query, 50)})
    assert shared >= 0.95 * 20 * 50


def test_vectors_of_other_width_and_unknown_papers_are_refused() -> None:
    held = Vectors(4)
    with pytest.raises(ValueError, match=re.escape("vectors: got (1, 3), wanted (1, 4)")):
        held.put(np.array([1]), np.ones((1, 3), np.float32))
    held.put(np.array([3]), np.ones((1, 4), np.float32))
    with pytest.raises(KeyError, match="numbers: got"):
        held.get(np.array([2]))
    with pytest.raises(KeyError, match="numbers: got"):
        held.get(np.array([9]))
    assert held.get(np.array([3])).tolist() == [[1, 1, 1, 1]]


# MiniLM


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    with pytest.raises(ValueError, match=r"path: got .*, wanted a folder of sentence-transformers with safetensors"):
        MiniLM(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    for missing in ("sentence_transformers", PACKAGE):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, missing=missing: None if name == missing else find(name)
        )
        with pytest.raises(ImportError, match=r"pip install 'paperworks\[search\]'"):
            MiniLM()


@needs_minilm
def test_minilm_knows_what_words_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = MiniLM()
    near = (v := model.embed(["a feline", "a cat", "the stock market"])) @ v.T
    assert v.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-5)
    assert near[0, 1] > 0.5 > near[0, 2]
    assert model.embed([]).shape == (0, 384)
    assert MiniLM(model.path).name.split("-")[-1] == model.name.split("-")[-1]
    with Store(tmp_path / "store.sqlite") as store:
        store.add([PaperRecord("On Cats", abstract="Cats purr."), PaperRecord("On Markets", abstract="Bonds yield.")])
        search = Search(store, embedder=model)
        found = search.query("felines").items
        assert [found[0].paper.title, set(found[0].parts)] == ["On Cats", {"meaning"}]
        assert search.model == model.name
        embedded: list[str] = []
        original = model.embed
        monkeypatch.setattr(model, "embed", lambda texts: embedded.extend(texts) or original(texts))
        Search(store, embedder=model).query("felines")
        assert not any("\n" in text for text in embedded)  # the papers' own vectors were kept
