"""The published layouts of face data sets, as lists of pictures with columns of targets."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from paperworks.data.expressions import EXPRESSIONS, RAFDB_ORDER, Face, FERDataset, _pictures

__all__ = ["UNKNOWN", "Row", "read_layout", "task_name"]

UNKNOWN = -1
"""The class of what is not known; an age that is not known is NaN."""
Row = tuple[Face, dict[str, float]]
SPLITS = ("train", "val", "test")
ORDER = {name: label for label, name in enumerate(RAFDB_ORDER)}
GENDERS = {"0": 0, "1": 1, "f": 0, "m": 1, "female": 0, "male": 1}


def task_name(published: str) -> str:
    """Snake case of a name as it is published: "Five O'Clock Shadow" and CelebA's "5_o_Clock_Shadow" are one task.

    CelebA's "Male" is the task ``"gender"``.
    """
    name = re.sub(r"[^a-z0-9]+", "_", published.lower()).strip("_")
    return {"5_o_clock_shadow": "five_o_clock_shadow", "male": "gender"}.get(name, name)


def read_layout(root: Path, layout: str, split: str) -> tuple[list[Row], tuple[str, ...]]:
    """Pictures with their targets, and the names of classes where the layout has them."""
    if layout == "folder_identities":
        people = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        rows = [(Face(p, i), {"identity": float(i)}) for i, name in enumerate(people) for p in _pictures(root / name)]
        return rows, tuple(people)
    readers = {"celeba": _celeba, "rafdb": _rafdb, "affectnet": _affectnet, "age_list": _age_list, "clap": _clap}
    return list(readers[layout](root, split)), RAFDB_ORDER if layout in ("rafdb", "affectnet") else ()


def _found(root: Path, names: tuple[str, ...]) -> Path:
    """The first of several entries of `root` that is there."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise ValueError(f"root: found none of {', '.join(names)} in {root}")


def _below(folders: list[Path], where: str, said: str) -> Path:
    """A picture by the name that a list gives it, below one of the folders."""
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise ValueError(f"{said}: found the path {where!r}, wanted one below the pictures")
    for folder in folders:
        if (folder / where).exists():
            return folder / where
    raise ValueError(f"{said}: found no picture {where!r} below {folders[0]}")


def _celeba(root: Path, split: str) -> Iterator[Row]:
    attributes = _found(root, ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt"))
    partition = _found(root, ("list_eval_partition.txt", "Eval/list_eval_partition.txt"))
    folder = _found(root, ("img_align_celeba", "Img/img_align_celeba"))
    parts = dict(line.split() for line in partition.read_text().splitlines() if line.strip())
    lines = attributes.read_text().splitlines()
    tasks = [task_name(name) for name in lines[1].split()] if len(lines) > 1 else []
    for number, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        name, *values = line.split()
        said = f"{attributes}, line {number}"
        if len(values) != len(tasks) or not set(values) <= {"-1", "1"}:
            raise ValueError(f"{said}: found {len(values)} values, wanted {len(tasks)}, each -1 or 1")
        if name not in parts:
            raise ValueError(f"{said}: {name} is in no part, wanted it in {partition}")
        if parts[name] == str(SPLITS.index(split)):
            labels = {task: float(value == "1") for task, value in zip(tasks, values, strict=True)}
            yield Face(_below([folder], name, said), UNKNOWN), labels


def _rafdb(root: Path, split: str) -> Iterator[Row]:
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, RAF-DB publishes train and test")
    root = root / "basic" if (root / "basic").is_dir() else root
    name = "list_patition_label.txt"
    table = _found(root, (name, f"EmoLabel/{name}"))
    folder = _found(root, ("Image/aligned", "aligned"))
    for number, line in enumerate(table.read_text().splitlines(), 1):
        if not line.strip():
            continue
        said = f"{table}, line {number}"
        found = re.fullmatch(r"(\S+?)(?:_aligned)?\.(\w+)\s+([1-7])", line.strip())
        if found is None:
            raise ValueError(f"{said}: found {line.strip()!r}, wanted a picture and an expression from 1 to 7")
        if found[1].startswith(split):
            label = int(found[3]) - 1
            path = _below([folder], f"{found[1]}_aligned.{found[2]}", said)
            yield Face(path, label), {"expression": float(label)}


def _affectnet(root: Path, split: str) -> Iterator[Row]:
    """AffectNet's layouts are read where expressions are; contempt, which has no place in the order, is left out."""
    for face in FERDataset(root, "affectnet", split).faces:
        name = EXPRESSIONS[face.label]
        if name in ORDER:
            yield face, {"expression": float(ORDER[name])}


def _list_file(root: Path, split: str, suffix: str) -> Path:
    if root.is_file():
        return root
    names = (f"{split}{suffix}", f"{split.capitalize()}{suffix}", f"gt_{split}{suffix}", f"gt_avg_{split}{suffix}")
    return _found(root, names)


def _age_list(root: Path, split: str) -> Iterator[Row]:
    table = _list_file(root, split, ".txt")
    for number, line in enumerate(table.read_text().splitlines(), 1):
        if not line.strip():
            continue
        said = f"{table}, line {number}"
        try:
            where, age, gender = line.rsplit(maxsplit=2)
            years = float(age)
            sex = UNKNOWN if gender.lower() == "nan" else GENDERS[gender.lower().removesuffix(".0")]
            if years < 0 or math.isinf(years):
                raise ValueError(f"an age of {years}")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{said}: wanted a path, years or nan, and a gender 0, 1 or nan ({error})") from error
        yield Face(_below([table.parent], where, said), UNKNOWN), {"age": years, "gender": float(sex)}


def _clap(root: Path, split: str) -> Iterator[Row]:
    table = _list_file(root, split, ".csv")
    text = table.read_text().splitlines()
    rows = list(csv.reader(text, delimiter=";" if text and ";" in text[0] else ","))
    columns = [0, 1, 2]
    if rows and not _is_number(rows[0][1] if len(rows[0]) > 1 else ""):
        names = [name.strip().lower() for name in rows.pop(0)]
        wanted = (("image", "file_name"), ("mean", "apparent_age_avg"), ("std", "apparent_age_std"))
        found = [next((names.index(n) for n in one if n in names), -1) for one in wanted]
        if min(found) < 0:
            raise ValueError(f"{table}: found the columns {', '.join(names)}, wanted image, mean and std")
        columns = found
    folders = [table.parent, *sorted(p for p in table.parent.iterdir() if p.is_dir())]
    for number, row in enumerate(rows, 1):
        said = f"{table}, row {number}"
        if not row:
            continue
        try:
            where, mean, std = row[columns[0]].strip(), float(row[columns[1]]), float(row[columns[2]])
        except (IndexError, ValueError) as error:
            raise ValueError(f"{said}: found {row}, wanted image, mean and std") from error
        if not (mean >= 0 and std > 0):
            raise ValueError(f"{said}: found a mean of {mean} and a deviation of {std}, wanted both above zero")
        yield Face(_below(folders, where, said), UNKNOWN), {"age": mean, "age_std": std}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
