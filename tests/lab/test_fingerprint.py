"""A trial is reused while the source that it executes is unchanged, and only then."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paperworks.lab import fingerprint as module
from paperworks.lab.fingerprint import fingerprint, sources

FILES = {
    "__init__.py": '"""A package."""\n',
    "core.py": "SCALE = 2\n",
    "method.py": (
        '"""A method."""\nfrom toy_package import core\n\nKERNEL = "method.c"\n\n\n'
        'def arm():\n    """Doc."""\n    return core.SCALE\n'
    ),
    "method.c": "int answer(void) { return 42; }\n",
    "other.py": "def arm():\n    return 0\n",
    "lazy.py": "def arm():\n    from toy_package.other import arm\n\n    return arm()\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    folder = tmp_path / "toy_package"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    def edit(name: str, old: str, new: str) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        module._source_path.cache_clear()
        module._parsed.cache_clear()

    module._source_path.cache_clear()
    yield edit
    for name in [n for n in sys.modules if n.startswith("toy_package")]:
        del sys.modules[name]
    module._source_path.cache_clear()


Edit = Callable[[str, str, str], None]


@pytest.mark.parametrize(
    ("edited", "old", "new", "changes"),
    [
        ("method.py", "return core.SCALE", "return core.SCALE + 1", True),
        ("core.py", "SCALE = 2", "SCALE = 3", True),
        ("method.c", "42", "43", True),
        ("other.py", "return 0", "return 1", False),
        ("method.py", '"""Doc."""', '"""Another text."""', False),
        ("core.py", "SCALE = 2", "SCALE = 2  # why", False),
    ],
)
def test_what_is_imported_counts_and_nothing_else(
    package: Edit, edited: str, old: str, new: str, changes: bool
) -> None:
    before = fingerprint("toy_package.method:arm")
    package(edited, old, new)
    assert (fingerprint("toy_package.method:arm") != before) is changes


def test_imports_inside_functions_count(package: Edit) -> None:
    before = fingerprint("toy_package.lazy:arm")
    package("other.py", "return 0", "return 1")
    assert fingerprint("toy_package.lazy:arm") != before


def test_signatures_of_the_users_data_count() -> None:
    assert fingerprint("fake_papers:noise", extra=("a",)) != fingerprint("fake_papers:noise", extra=("b",))


def test_editing_one_paper_does_not_rerun_another() -> None:
    protocol = "paperworks.papers.protocols.images:classification"
    executed = sources(protocol, "paperworks.activations.ash:ASH")
    assert "paperworks.activations.ash" in executed
    assert "paperworks.data.images" in executed
    assert "paperworks.papers.protocols.training" in executed
    assert not [m for m in executed if m.startswith(("paperworks.papers.ash", "paperworks.activations.crrelu"))]
    assert not [m for m in executed if m.startswith("paperworks.lab")]


def test_an_exact_claim_counts_its_function_and_not_its_card() -> None:
    executed = sources("paperworks.papers.ash:two_scalars_a_layer")
    assert "paperworks.papers.ash:two_scalars_a_layer" in executed
    assert "paperworks.activations.ash" in executed
    assert "paperworks.papers.protocols.images" not in executed


def test_installed_packages_are_not_followed() -> None:
    assert sources("torch.nn:ReLU") == {}
