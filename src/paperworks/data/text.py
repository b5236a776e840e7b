"""Text for small language models, available offline, as characters.

`load_text(spec)` gives one string: `docstrings` (of the standard library), `topics` (the language reference behind
`help()`), or `text:PATH`. `char_vocabulary` and `encode` turn it into tokens, `split_blocks` holds out contiguous
blocks, and `sample_windows` and `all_windows` cut windows that never cross from training to validation.
"""

from __future__ import annotations

import ast
import functools
import gc
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperworks.data.sources import DataNotFoundError, Source, parse_source, walk_files

LEFT_OUT = {
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "distutils",
    "pydoc_data",
    "turtledemo",
    "this",
    "antigravity",
}
"""Standard library packages without prose of their own (tables, bundled data, demos) or gone from newer Pythons."""
SEPARATOR = "\n\n"


def load_text(spec: str) -> str:
    """The text that `spec` names: `docstrings`, `topics`, or `text:PATH` for a UTF-8 file or a folder of `.txt` files.

    The files of a folder (and its sub-folders) come in the order of their names, an empty line between them; line ends
    become "\\n". Raises ValueError naming the spec and the file for text that is not UTF-8, is empty, or is not there.
    """
    source = parse_source(spec, "text")
    if source.scheme == "docstrings":
        return standard_library_docstrings()
    if source.scheme == "topics":
        return topics()
    files = [source.location]
    if source.location.is_dir():
        found, _ = walk_files(source.location, follow_links=source.choice("links", ("follow",)) is not None)
        files = [path for path in found if path.suffix.lower() == ".txt"]
        if not files:
            raise source.error(f"{len(found)} files, none of them .txt", "a file, or a folder with .txt files")
    text = SEPARATOR.join(_read_text(source, path) for path in files)
    if not text.strip():
        raise source.error("no text", "at least one character")
    return text


def _read_text(source: Source, path: Path) -> str:
    try:
        text = source.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise source.error(f"{path} with {error.reason} at byte {error.start}", "UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@functools.cache
def standard_library_docstrings() -> str:
    """The docstrings of this Python's standard library, public modules only: about 1.4 million characters.

    Modules in the order of their names, docstrings in the order of the source, an empty line between two. The sources
    are parsed, never imported (about two seconds at the first call). The text is the same for the same version of
    Python. Raises DataNotFoundError where the standard library comes without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    collecting = gc.isenabled()
    gc.disable()  # half of the time would go to looking for cycles among millions of live nodes, where there are none
    try:
        found = [doc for path in _library_sources(root) for doc in _docstrings(ast.parse(path.read_bytes()))]
    finally:
        if collecting:
            gc.enable()
    if not found:
        raise DataNotFoundError(f"docstrings: found no sources of the standard library in {root}; wanted its .py files")
    return SEPARATOR.join(found)


def _library_sources(root: Path) -> Iterator[Path]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in LEFT_OUT:
            continue
        for path in sorted([root / f"{name}.py", *(root / name).rglob("*.py")]):
            inside = path.relative_to(root).parts
            if path.is_file() and not {"test", "tests", "idle_test"} & set(inside):
                yield path


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The docstring of `node`, then those of what it defines, in the order of the source."""
    text = ast.get_docstring(node)
    if text:
        yield text
    # ast.walk would visit every expression; definitions stand in bodies, at most inside a condition or a try
    todo: list[ast.stmt] = node.body[::-1]
    while todo:
        statement = todo.pop()
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(statement)
        elif isinstance(statement, ast.If | ast.Try):
            todo += (statement.body + statement.orelse)[::-1]


def topics() -> str:
    """The chapters of the language reference that `help()` shows, in the order of their names: 465,000 characters.

    Raises DataNotFoundError where Python comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics as chapters
    except ImportError as error:
        raise DataNotFoundError("topics: found no pydoc_data in this Python; wanted its chapters") from error
    return SEPARATOR.join(chapters[name] for name in sorted(chapters))


def char_vocabulary(text: str) -> list[str]:
    """The distinct characters of `text`, in the order of their code points: the token of a character is its place."""
    return sorted(set(text))


def encode(text: str, vocabulary: Sequence[str]) -> Tensor:
    """`text` as int64 (len(text),) tokens. Raises ValueError for a character that `vocabulary` lacks, and its place."""
    points = torch.from_numpy(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64))
    codes = torch.tensor([ord(character) for character in vocabulary], dtype=torch.int64)
    if not len(codes):
        raise ValueError("vocabulary: got no character, wanted at least one")
    ordered, places = codes.sort()
    index = torch.searchsorted(ordered, points).clamp_(max=len(codes) - 1)
    unknown = torch.nonzero(ordered[index] != points).flatten()
    if len(unknown):
        place = int(unknown[0])
        raise ValueError(
            f"text: got {text[place]!r} at {place}, wanted one of the {len(codes)} characters of vocabulary"
        )
    return places[index]


def decode(tokens: Tensor, vocabulary: Sequence[str]) -> str:
    """The text of int (N,) tokens: the inverse of `encode`."""
    return "".join(vocabulary[i] for i in tokens.tolist())


def split_blocks(
    tokens: Tensor, seed: int, *, validation_fraction: float = 0.1, block: int = 4096
) -> tuple[list[Tensor], list[Tensor]]:
    """Training and validation runs: the text is cut into blocks, and the seed chooses the blocks that are held out.

    Args:
        tokens: (N,), of any dtype.
        seed: makes the choice.
        validation_fraction: share of the blocks that is held out, in (0, 1); at least one block.
        block: tokens a block; the last one is shorter.

    Returns:
        two lists of views of `tokens`, each a run of neighbouring blocks of one side, in the order of the text.
        Together they hold every token once.

    Raises ValueError where there are not two blocks, and for a fraction outside (0, 1).
    """
    if tokens.ndim != 1 or block < 1 or len(tokens) <= block:
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, wanted (N,) with N above the block of {block}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction: got {validation_fraction!r}, wanted a number in (0, 1)")
    blocks = -(-len(tokens) // block)
    n_held = min(max(1, round(blocks * validation_fraction)), blocks - 1)
    held = torch.zeros(blocks, dtype=torch.bool)
    held[torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:n_held]] = True
    ends = (torch.nonzero(held[1:] != held[:-1]).flatten() + 1).tolist()
    runs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start, end in zip([0, *ends], [*ends, blocks], strict=True):
        runs[int(held[start])].append(tokens[start * block : end * block])
    return runs


def sample_windows(
    runs: Sequence[Tensor], *, batch_size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random batch for next-token prediction: inputs and targets (batch_size, length), targets one token later.

    Every window inside a run is as likely as any other; none crosses the end of its run. `generator` is on the CPU.
    Raises ValueError where no run has length + 1 tokens.
    """
    usable = _usable(runs, length)
    counts = torch.tensor([len(run) - length for run in usable])
    ends = counts.cumsum(0)
    places = torch.randint(int(ends[-1]), (batch_size,), generator=generator)
    which = torch.searchsorted(ends, places, right=True)
    starts = (places - (ends - counts)[which]).tolist()
    windows = torch.stack([usable[r][s : s + length + 1] for r, s in zip(which.tolist(), starts, strict=True)])
    return windows[:, :-1], windows[:, 1:]


def all_windows(runs: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """The windows that follow one another in every run, for a validation loss: inputs and targets (W, length).

    Each token is a target at most once; what is left at the end of a run, shorter than a window, stays out. Raises
    ValueError where no run has length + 1 tokens.
    """
    inputs, targets = [], []
    for run in _usable(runs, length):
        fits = (len(run) - 1) // length * length
        inputs.append(run[:fits].reshape(-1, length))
        targets.append(run[1 : fits + 1].reshape(-1, length))
    return torch.cat(inputs), torch.cat(targets)


def _usable(runs: Sequence[Tensor], length: int) -> list[Tensor]:
    usable = [run for run in runs if len(run) > length >= 1]
    if not usable:
        longest = max((len(run) for run in runs), default=0)
        raise ValueError(f"length: got {length} for runs of at most {longest} tokens, wanted 1 to {longest - 1}")
    return usable
