"""A verifier for text pipelines: any encoder of texts in front of an `SDMClassifier`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .classifier import SDMClassifier
from .explanation import Explanation
from .result import SDMResult


class TextVerifier:
    """Labels for texts, each with a conservative probability and an admit or reject decision.

    Called like a `transformers` pipeline: one text gives a dict, a list gives a list of dicts with "label", "score"
    (the lower probability), "admitted", "q", "d".

    Args:
        encoder: a model with `encode(texts)` (sentence-transformers), or a callable from a list of texts to
            embeddings: (N, D), or per text a token matrix (T, D) or (1, T, D) as a feature-extraction pipeline
            gives, of which the mean over tokens is taken.
        classifier: the estimator; None is `SDMClassifier()`.
        batch_size: texts handed to the encoder at once.
    """

    def __init__(self, encoder: Any, classifier: SDMClassifier | None = None, *, batch_size: int = 32) -> None:
        encode = getattr(encoder, "encode", encoder)
        if not callable(encode):
            raise TypeError(f"encoder must be callable or have an `encode` method, got {type(encoder).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._encode: Callable[[list[str]], Any] = encode
        self.classifier = SDMClassifier() if classifier is None else classifier
        self.batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Embeddings (N, D) of texts.

        Raises:
            TypeError: something that is not text.
            ValueError: no texts, or an encoder whose output has another shape.
        """
        texts = list(texts)
        bad = next((t for t in texts if not isinstance(t, str)), None)
        if bad is not None:
            raise TypeError(f"texts must be strings, got {type(bad).__name__}")
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        batches = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        return np.stack([_vector(e) for batch in batches for e in self._rows(batch)])

    def _rows(self, batch: list[str]) -> Any:
        encoded = self._encode(batch)
        if len(encoded) != len(batch):
            raise ValueError(f"encoder must give one embedding a text: got {len(encoded)} for {len(batch)} texts")
        return encoded

    def fit(
        self,
        texts: Sequence[str],
        labels: ArrayLike,
        texts_cal: Sequence[str] | None = None,
        labels_cal: ArrayLike | None = None,
    ) -> TextVerifier:
        """Fit the classifier on the texts' embeddings; returns self.  Errors as in `SDMClassifier.fit`."""
        calibration = None if texts_cal is None else self.embed(texts_cal)
        self.classifier.fit(self.embed(texts), labels, calibration, labels_cal)
        return self

    def select(self, texts: Sequence[str]) -> SDMResult:
        """`SDMClassifier.select` of texts."""
        return self.classifier.select(self.embed(texts))

    def explain(self, texts: Sequence[str], k: int = 5) -> Explanation:
        """`SDMClassifier.explain` of texts."""
        return self.classifier.explain(self.embed(texts), k)

    def __call__(self, texts: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
        result = self.select([texts] if isinstance(texts, str) else texts)
        columns = (result.prediction, result.probability, result.admitted, result.q, result.d)
        names = ("label", "score", "admitted", "q", "d")
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
        return rows[0] if isinstance(texts, str) else rows


def _vector(embedding: Any) -> NDArray[np.floating]:
    """One text's embedding (D,), averaged over tokens where there are tokens."""
    detached = embedding.detach().float().cpu() if hasattr(embedding, "detach") else embedding
    array = np.asarray(detached)
    array = array if array.dtype.kind == "f" else array.astype(np.float64)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"encoder must give vectors, got shape {array.shape} for one text")
    return array.reshape(-1, array.shape[-1]).mean(0) if array.ndim > 1 else array
