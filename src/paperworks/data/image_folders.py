"""Folders of pictures, one folder a class: `imagefolder:PATH`."""

from __future__ import annotations

import functools
import struct
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from paperworks.data.images import ImageData, convert, published_split, require_memory, resize, stratified_sample
from paperworks.data.sources import Source, walk_files

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's plain raster readers. Others start programs (EPS) or hold more than a picture."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
MAX_PIXELS = 2**26
"""Larger pictures are not decoded."""
USUAL_SIDE = 224
"""Where no size prevails, pictures are cut to the median of their shorter sides, at most this."""
GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
HELD_OUT_NAMES, VALIDATION_NAMES = ("test",), ("val", "valid", "validation")
# what Pillow's readers raise for files that are not what their first bytes promise
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


@dataclass(frozen=True)
class _Picture:
    path: Path
    name: str
    label: str
    held_out: bool
    height: int
    width: int
    gray: bool


def read_image_folder(source: Source) -> ImageData:
    """`imagefolder:PATH`: PATH/class/.../picture, or the same below PATH/train with PATH/val or PATH/test.

    With such parts, the test part (`test`, else `val`) is the published split; `val` beside `test` counts as training.
    PNG, JPEG, BMP, GIF, TIFF, WebP and PPM are read whatever their names: palettes as colours, transparency over white,
    16-bit gray in full, turned as EXIF says. What cannot be read is left out, and named in one warning.

    Options: `size` (default: the size that more than half of the pictures have, else a square of the median shorter
    side, at most 224; others are scaled to cover it and cut at the centre), `mode=gray|rgb` (default: gray if all are),
    `limit=N` (N pictures, stratified, always the same ones), `links=follow` (links that lead out of PATH count).
    """
    if not source.location.is_dir():
        raise source.error("a file", "a folder with one folder a class")
    follow = source.choice("links", ("follow",)) is not None
    pictures, problems = _list_pictures(source, follow)
    pictures = _limited(source, pictures)
    height, width = source.size() or _usual_size(pictures)
    mode = source.choice("mode", ("gray", "rgb")) or ("gray" if all(p.gray for p in pictures) else "rgb")
    require_memory(source, (len(pictures), 1 if mode == "gray" else 3, height, width))
    images = torch.empty(len(pictures), 1 if mode == "gray" else 3, height, width)
    kept: list[_Picture] = []
    for picture in pictures:
        try:
            pixels = _decode(picture.path)
        except UNREADABLE as error:
            problems.append(f"{picture.name} ({_reason(error)})")
            continue
        images[len(kept)] = resize(convert(pixels[None], mode), height, width)[0]
        kept.append(picture)
    if not kept:
        raise source.error(f"no readable picture; left out: {_listed(problems)}", "pictures in class folders")
    if problems:
        message = f"{source.spec!r}: {len(problems)} files or folders left out: {_listed(problems)}"
        warnings.warn(message, UserWarning, stacklevel=4)
    classes = sorted({p.label for p in kept})
    return ImageData(source.location.name, images[: len(kept)], *_labels(kept, classes))


def _list_pictures(source: Source, follow: bool) -> tuple[list[_Picture], list[str]]:
    """Every file below a class folder that opens as a picture, and the names of what does not, with reasons."""
    root = source.location
    files, problems = walk_files(root, follow_links=follow)
    names = [path.relative_to(root).parts for path in files]
    parts = _parts(names)
    pictures = []
    unknown: Counter[str] = Counter()
    for path, name in zip(files, names, strict=True):
        depth = 1 if parts else 0
        if len(name) > 1 and parts and name[0] not in parts:
            unknown[name[0]] += 1
            continue
        if len(name) < depth + 2:
            if _looks_a_picture(name):
                problems.append(f"{'/'.join(name)} (in no class folder)")
            continue
        try:
            height, width, gray = _header(path)
        except UNREADABLE as error:
            problems.append(f"{'/'.join(name)} ({_reason(error)})")
            continue
        held_out = parts[name[0]] if parts else False
        pictures.append(_Picture(path, "/".join(name), name[depth], held_out, height, width, gray))
    problems += [f"{folder} ({count} files, no part of the split)" for folder, count in unknown.items()]
    if not pictures:
        found = f"{len(files)} files in {root}, none a picture in a class folder"
        raise source.error(found + (f"; left out: {_listed(problems)}" if problems else ""), "PATH/class/picture")
    return pictures, problems


def _parts(names: list[tuple[str, ...]]) -> dict[str, bool]:
    """The sub-folders that are parts of a split, with whether each is held out; empty where they are classes.

    `train` and `test` may be classes too (vehicles, say): parts have class folders, and no picture of their own. A
    `train` alone is a part.
    """
    own = {name[0] for name in names if len(name) == 2 and _looks_a_picture(name)}
    folders = {name[0].lower(): name[0] for name in names if len(name) >= 3 and name[0] not in own}
    validation = [folders[n] for n in VALIDATION_NAMES if n in folders]
    test = [folders[n] for n in HELD_OUT_NAMES if n in folders]
    alone = len({name[0] for name in names if len(name) > 1}) == 1
    if "train" not in folders or not (validation or test or alone):
        return {}
    held_out = test or validation
    return {folders["train"]: False, **dict.fromkeys(validation, False), **dict.fromkeys(held_out, True)}


def _looks_a_picture(name: tuple[str, ...]) -> bool:
    return Path(name[-1]).suffix.lower() in SUFFIXES


def _limited(source: Source, pictures: list[_Picture]) -> list[_Picture]:
    limit = source.integer("limit")
    if limit is None or limit >= len(pictures):
        return pictures
    labels, _, held_out = _labels(pictures, sorted({p.label for p in pictures}))
    chosen = stratified_sample(labels, limit, torch.Generator().manual_seed(0), held_out)
    return [pictures[i] for i in sorted(chosen.tolist())]


def _labels(pictures: list[_Picture], classes: list[str]) -> tuple[Tensor, list[str], Tensor | None]:
    index = {name: i for i, name in enumerate(classes)}
    held_out = published_split(torch.tensor([p.held_out for p in pictures]))
    return torch.tensor([index[p.label] for p in pictures]), classes, held_out


def _usual_size(pictures: list[_Picture]) -> tuple[int, int]:
    size, count = Counter((p.height, p.width) for p in pictures).most_common(1)[0]
    if 2 * count > len(pictures):
        return size
    sides = sorted(min(p.height, p.width) for p in pictures)
    side = min(sides[len(sides) // 2], USUAL_SIDE)
    return side, side


def _header(path: Path) -> tuple[int, int, bool]:
    """Height and width as the picture is shown, and whether it is gray, without decoding it."""
    with Image.open(path, formats=_formats()) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, wanted at most {MAX_PIXELS:,}")
        # not picture.getexif(): for PNG that decodes the picture first
        turned = Image.Image.getexif(picture).get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
        return (width, height, picture.mode in GRAY_MODES) if turned else (height, width, picture.mode in GRAY_MODES)


@functools.cache
def _formats() -> tuple[str, ...]:
    """`FORMATS` as far as this Pillow was built with them: it would take a missing one for a broken file."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(path: Path) -> Tensor:
    """The first frame as float32 (1 or 3, H, W) in [0, 1]."""
    with Image.open(path, formats=_formats()) as opened:
        picture: Image.Image = opened
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            return _deep_gray(np.asarray(picture))
        if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
            target = "LA" if picture.mode in GRAY_MODES else "RGBA"
            values = _channels(picture if picture.mode == target else picture.convert(target))
            colour, alpha = values[:-1], values[-1:]
            return colour * alpha + (1 - alpha)
        return _channels(picture.convert("L" if picture.mode in GRAY_MODES else "RGB"))


def _channels(picture: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(picture, dtype=np.uint8)).to(torch.float32).div_(255)
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _deep_gray(values: np.ndarray) -> Tensor:
    """Gray of more than 8 bits: whole numbers of 16 bits over 65535, floats in [0, 1] as they are."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    made = torch.from_numpy(values.astype(np.float32) / top)
    if not (bool(torch.isfinite(made).all()) and bool((made >= 0).all()) and bool((made <= 1).all())):
        raise ValueError(f"gray values from {values.min()} to {values.max()}, wanted 0 to {top:g}")
    return made[None]


def _reason(error: BaseException) -> str:
    return str(error).split(" '/")[0].split(" <")[0] or type(error).__name__


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
