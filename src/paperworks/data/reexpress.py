"""Tables of embeddings with labels: Reexpress JSON lines, arrays, `.npz` files, data sets with an embedding column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
OUT_OF_DISTRIBUTION = -99


class EmbeddingTable(NamedTuple):
    """Documents as vectors.

    X: (N, D) float32, attributes then embedding.  y: (N,) int64, with -1 unlabelled and -99 out of distribution.
    ids, documents: (N,) strings.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: list[str]
    documents: list[str]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Rows with a class label."""
        return np.asarray(self.y >= 0)


def read_reexpress_jsonl(path: str | Path) -> EmbeddingTable:
    """Read JSON lines with `id`, `label`, `document` and `embedding` and/or `attributes` (lists of numbers).

    A row's vector is its attributes followed by its embedding.  Empty lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not such a record, names given by line number: a missing or mistyped field, a
            label below -1 other than -99, vectors of different lengths, numbers that are not finite, no records.
    """
    vectors: list[NDArray[np.float32]] = []
    labels, ids, documents = [], [], []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = _record(line, where)
            vector = np.array(_numbers(record, "attributes", where) + _numbers(record, "embedding", where), np.float32)
            if not vector.size:
                raise ValueError(f"{where}: wanted `embedding` or `attributes` with numbers, got neither")
            if vectors and vector.size != vectors[0].size:
                raise ValueError(f"{where}: wanted {vectors[0].size} numbers like the lines before, got {vector.size}")
            if not np.isfinite(vector).all():
                raise ValueError(f"{where}: numbers must be finite, got NaN or infinity")
            vectors.append(vector)
            labels.append(_label(record, where))
            ids.append(str(record["id"]))
            documents.append(record["document"])
    if not vectors:
        raise ValueError(f"{path}: wanted at least one record, got none")
    return EmbeddingTable(np.stack(vectors), np.array(labels, np.int64), ids, documents)


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: wanted an object, got {type(record).__name__}")
    missing = [name for name in ("id", "label", "document") if name not in record]
    if missing:
        raise ValueError(f"{where}: missing {missing}")
    if not isinstance(record["document"], str):
        raise ValueError(f"{where}: `document` must be text, got {type(record['document']).__name__}")
    return record


def _numbers(record: Mapping[str, Any], name: str, where: str) -> list[float]:
    values = record.get(name, [])
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise ValueError(f"{where}: `{name}` must be a list of numbers")
    return values


def _label(record: Mapping[str, Any], where: str) -> int:
    label = record["label"]
    if isinstance(label, bool) or not isinstance(label, int) or (label < 0 and label not in (-1, -99)):
        raise ValueError(f"{where}: `label` must be a class 0, 1, ..., -1 (unlabelled) or -99 (OOD), got {label!r}")
    return label


def embedding_table(
    source: Any, *, embedding: str = "embedding", label: str = "label"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """X (N, D) and y (N,) from whatever holds embeddings.

    Args:
        source: a pair (X, y) of arrays; the path of a Reexpress `.jsonl` file or of an `.npz` file with the arrays X
            and y; a mapping or a table with columns (a `datasets.Dataset`, a pandas DataFrame); or a sequence of
            mappings, a row each.
        embedding, label: names of the columns.

    Raises:
        TypeError: a source of another kind.
        ValueError: a missing array or column, or shapes that do not fit.
    """
    if isinstance(source, (str, Path)):
        X, y = _from_file(Path(source))
    elif isinstance(source, tuple) and len(source) == 2:
        X, y = source
    elif isinstance(source, Mapping) or hasattr(source, "column_names") or hasattr(source, "columns"):
        names = list(getattr(source, "column_names", getattr(source, "columns", source)))
        missing = [n for n in (embedding, label) if n not in names]
        if missing:
            raise ValueError(f"source must have the columns {[embedding, label]}, missing {missing} of {names}")
        X, y = np.array([np.asarray(row) for row in source[embedding]]), source[label]
    elif isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        columns = {n: [row[n] for row in source] for n in (embedding, label) if all(n in row for row in source)}
        return embedding_table(columns, embedding=embedding, label=label)
    else:
        raise TypeError(f"source must be arrays, a path, a table or rows, got {type(source).__name__}")
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or y.shape != (len(X),) or X.dtype.kind not in "fiu":
        raise ValueError(f"source must give numbers X (N, D) and y (N,), got {X.dtype} {X.shape} and {y.shape}")
    return X, y


def _from_file(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if path.suffix != ".npz":
        table = read_reexpress_jsonl(path)
        return table.X, table.y
    with np.load(path, allow_pickle=False) as arrays:
        missing = [n for n in ("X", "y") if n not in arrays]
        if missing:
            raise ValueError(f"{path} must hold the arrays X and y, missing {missing} of {list(arrays)}")
        return arrays["X"], arrays["y"]
