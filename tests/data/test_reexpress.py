import json

import numpy as np
import pytest

from paperworks.data.reexpress import embedding_table, read_reexpress_jsonl


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def records(n=40, attributes=4, embedding=8):
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"doc-{i}",
            "label": [0, 1, 0, 1, -1, -99][i % 6],
            "document": f"text {i} ü",
            "attributes": rng.normal(size=attributes).tolist(),
            "embedding": rng.normal(size=embedding).tolist(),
        }
        for i in range(n)
    ]


def test_attributes_come_before_the_embedding(tmp_path):
    made = records()
    table = read_reexpress_jsonl(write(tmp_path / "a.jsonl", made))
    assert table.X.shape == (40, 12)
    assert table.X.dtype == np.float32
    expected = np.array([r["attributes"] + r["embedding"] for r in made], dtype=np.float32)
    assert (expected == table.X).all()
    assert table.y.tolist() == [r["label"] for r in made]
    assert table.ids[3] == "doc-3"
    assert table.documents[3] == "text 3 ü"
    assert table.labelled.tolist() == [r["label"] >= 0 for r in made]
    X, y, *_ = table
    assert X is table.X
    assert y is table.y


@pytest.mark.parametrize("missing", ["attributes", "embedding"])
def test_either_part_may_be_missing(tmp_path, missing):
    made = records()
    for r in made:
        del r[missing]
    assert read_reexpress_jsonl(write(tmp_path / "a.jsonl", made)).X.shape[1] == (8 if missing == "attributes" else 4)


def test_empty_lines_are_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", records(2))
    path.write_text("\n" + path.read_text().replace("\n", "\n\n"))
    assert len(read_reexpress_jsonl(path).ids) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -2}, "line 2: `label`"),
        ({"label": "1"}, "line 2: `label`"),
        ({"document": 3}, "line 2: `document`"),
        ({"embedding": ["x"]}, "line 2: `embedding`"),
        ({"embedding": [1.0]}, "line 2: wanted 12 numbers"),
        ({"embedding": [], "attributes": []}, "line 2: wanted `embedding`"),
        ({"embedding": [float("nan")] * 8}, "line 2: numbers must be finite"),
    ],
)
def test_bad_records_are_named_by_line(tmp_path, change, message):
    first, second = records(2)
    with pytest.raises(ValueError, match=message):
        read_reexpress_jsonl(write(tmp_path / "a.jsonl", [first, second | change]))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="at least one record"):
        read_reexpress_jsonl(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "b.jsonl").write_text("{not json\n")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_reexpress_jsonl(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="line 1: wanted an object"):
        read_reexpress_jsonl(write(tmp_path / "c.jsonl", [[1]]))
    with pytest.raises(ValueError, match=r"line 1: missing \['id', 'document'\]"):
        read_reexpress_jsonl(write(tmp_path / "d.jsonl", [{"label": 1}]))
    with pytest.raises(FileNotFoundError):
        read_reexpress_jsonl(tmp_path / "nowhere.jsonl")


def test_one_table_from_every_source(tmp_path):
    made = records(6)
    X = np.array([r["embedding"] for r in made])
    y = np.array([r["label"] for r in made])
    np.savez(tmp_path / "a.npz", X=X, y=y)
    columns = {"embedding": X.tolist(), "label": y.tolist()}
    rows = [{"vector": e, "class": c} for e, c in zip(X, y, strict=True)]
    for got in (
        embedding_table((X, y)),
        embedding_table(tmp_path / "a.npz"),
        embedding_table(columns),
        embedding_table(rows, embedding="vector", label="class"),
    ):
        assert np.array_equal(got[0], X)
        assert np.array_equal(got[1], y)
    assert embedding_table(write(tmp_path / "a.jsonl", made))[0].shape == (6, 12)


def test_tables_of_other_libraries():
    pandas = pytest.importorskip("pandas", reason="reads pandas tables")
    frame = pandas.DataFrame({"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    assert embedding_table(frame)[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_datasets_table():
    datasets = pytest.importorskip("datasets", reason="reads data sets of `datasets`")
    table = datasets.Dataset.from_dict({"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    assert embedding_table(table)[1].tolist() == [0, 1]


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(TypeError, match="source"):
        embedding_table(3)
    with pytest.raises(ValueError, match=r"missing \['label'\]"):
        embedding_table({"embedding": [[1.0]]})
    with pytest.raises(ValueError, match="missing"):
        embedding_table([{"embedding": [1.0]}])
    with pytest.raises(ValueError, match="numbers X"):
        embedding_table((np.zeros((2, 3)), np.zeros(3)))
    np.savez(tmp_path / "a.npz", X=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"missing \['y'\]"):
        embedding_table(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", X=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    with pytest.raises(ValueError, match="allow_pickle"):
        embedding_table(tmp_path / "b.npz")
