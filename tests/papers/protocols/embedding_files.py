"""Small files in the layouts of the selective classification protocol's real data."""

import json
from pathlib import Path

import numpy as np


def write_embeddings(path: Path, n: int = 160, features: int = 12, seed: int = 0, distance: float = 2.0) -> str:
    """Two classes around +-distance/2 in the first feature, given as attributes and an embedding; returns the spec."""
    generator = np.random.default_rng(seed)
    with path.open("w") as file:
        for i in range(n):
            x = generator.standard_normal(features)
            x[0] += distance * (i % 2 - 0.5)
            row = {"id": str(i), "label": i % 2, "document": f"text {i}"}
            file.write(json.dumps({**row, "attributes": x[:2].tolist(), "embedding": x[2:].tolist()}) + "\n")
    return f"jsonl:{path}"


def write_answers(path: Path, n: int = 120, seed: int = 0) -> str:
    """Seven features a line: the stated confidence at the place of one of four answers, and three more."""
    generator = np.random.default_rng(seed)
    with path.open("w") as file:
        for i in range(n):
            answer, confidence = int(generator.integers(4)), float(generator.choice([0.6, 0.9, 0.99]))
            label = answer if generator.random() < confidence else (answer + 1) % 4
            stated = [confidence if c == answer else 0.0 for c in range(4)]
            row = {"id": str(i), "label": label, "document": "", "attributes": [*stated, *generator.random(3).tolist()]}
            file.write(json.dumps(row) + "\n")
    return f"jsonl:{path}"
