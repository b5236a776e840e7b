"""README and CONTRIBUTING are true: their Python runs, their commands exist, their table has every paper and claim."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from paperworks.lab import registry
from paperworks.lab.report import readme_structure

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_python_of_the_readme_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_table_has_every_paper_and_claim() -> None:
    """Numbers may change with the machine; run `paperworks report --readme` when this fails."""
    found = readme_structure(README.read_text(encoding="utf-8"))
    assert found == {paper.id: [claim.id for claim in paper.claims] for paper in registry.papers()}


def test_the_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from paperworks.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"^paperworks (\w+)", "\n".join(blocks(README, "sh")), re.MULTILINE)
    assert set(named) == set(commands)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks(README, "sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_example_of_contributing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    method, card = blocks(CONTRIBUTING, "python")
    module = types.ModuleType("paperworks.activations.bump")
    exec(compile(method, "bump.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert torch.equal(module.Bump()(torch.zeros(3)), torch.zeros(3))
    declared: dict[str, object] = {"__name__": "bump_card"}
    exec(compile(card, "bump_card.py", "exec"), declared)
    from paperworks.lab.trial import Trial

    paper, check = declared["paper"], declared["is_relu_far_from_zero"]
    assert [c.kind for c in paper.claims] == ["exact", "measured"]  # type: ignore[attr-defined]
    assert paper.claims[0].bounds[""].met(check(Trial()))  # type: ignore[attr-defined, operator]
