"""ImageNet as folders of pictures, read while training: `imagefolder:PATH` with PATH/train and PATH/val."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from paperworks.data.image_folders import FORMATS, SUFFIXES
from paperworks.data.sources import parse_source, walk_files

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, with which the published weights were trained."""

Item = tuple[int, int | None]
"""Index of a picture, and the seed of its augmentation; None for the centre crop."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """The pictures of one part, labelled by the sorted names of the class folders (ImageNet's order).

    Args:
        spec: `imagefolder:PATH`.
        part: "train" or "val", a folder below PATH.
        size: side of the pictures in pixels.

    Raises ValueError where the part is missing or has no picture in a class folder.
    """

    def __init__(self, spec: str, part: str, size: int) -> None:
        source = parse_source(spec, "images")
        root = source.location / part
        if not root.is_dir():
            raise source.error(f"no folder {part!r}", "PATH/train and PATH/val with one folder a class")
        files, _ = walk_files(root)
        named = [(path, path.relative_to(root).parts) for path in files if path.suffix.lower() in SUFFIXES]
        named = [(path, parts) for path, parts in named if len(parts) > 1]
        if not named:
            raise source.error(f"no picture in {part}/class/", "PATH/train/class/picture and PATH/val/class/picture")
        self.classes = sorted({parts[0] for _, parts in named})
        index = {name: i for i, name in enumerate(self.classes)}
        self.items: list[tuple[Path, int]] = [(path, index[parts[0]]) for path, parts in named]
        self.size = size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: Item | int) -> tuple[Tensor, int]:
        """The normalised picture (3, size, size) and its label. Raises OSError for a file that is no picture."""
        place, seed = item if isinstance(item, tuple) else (item, None)
        path, label = self.items[place]
        with Image.open(path, formats=FORMATS) as picture:
            pixels = picture.convert("RGB")
        if seed is None:
            image = _centre(pixels, self.size)
        else:
            image = _augmented(pixels, self.size, torch.Generator().manual_seed(seed))
        return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None], label


def _tensor(picture: Image.Image) -> Tensor:
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return raw.view(picture.height, picture.width, 3).permute(2, 0, 1) / 255


def _centre(picture: Image.Image, size: int) -> Tensor:
    """The shorter side to 256 / 224 of `size`, bicubic, then the centre."""
    scale = round(size * 256 / 224) / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return _tensor(resized.crop((left, top, left + size, top + size)))


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _augmented(picture: Image.Image, size: int, generator: torch.Generator) -> Tensor:
    """Random resized crop (8 to 100 % of the area), mirror image, colour jitter of 0.4, random erasing at 0.25."""
    width, height = picture.size
    area = width * height * _uniform(generator, 0.08, 1.0)
    aspect = math.exp(_uniform(generator, math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * aspect))), min(height, round(math.sqrt(area / aspect)))
    w, h = max(1, w), max(1, h)
    left, top = (int(_uniform(generator, 0, room + 1 - 1e-6)) for room in (width - w, height - h))
    image = _tensor(picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)))
    if _uniform(generator, 0, 1) < 0.5:
        image = image.flip(2)
    gray = torch.tensor((0.299, 0.587, 0.114))
    brightness, contrast, saturation = (_uniform(generator, 0.6, 1.4) for _ in range(3))
    image = (image * brightness).clamp(0, 1)
    level = torch.einsum("c,chw->hw", gray, image).mean()
    image = (level + (image - level) * contrast).clamp(0, 1)
    own = torch.einsum("c,chw->hw", gray, image)
    image = (own + (image - own) * saturation).clamp(0, 1)
    if _uniform(generator, 0, 1) < 0.25:
        side_h, side_w = (max(1, int(size * _uniform(generator, 0.14, 0.58))) for _ in range(2))
        y, x = (int(_uniform(generator, 0, size - side + 1 - 1e-6)) for side in (side_h, side_w))
        image[:, y : y + side_h, x : x + side_w] = torch.rand(3, side_h, side_w, generator=generator)
    return image


def mixed(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Beta(0.8, 0.8)) or CutMix (Beta(1, 1)) of a batch with its reverse, one of the two at random.

    Args:
        images: (N, C, H, W).
        labels: (N, classes) probabilities.
    """
    cut = bool(torch.rand((), generator=generator) < 0.5)
    alpha = 1.0 if cut else 0.8
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=generator).tolist()
    share = first / (first + second)
    other = images.flip(0)
    if not cut:
        return images * share + other * (1 - share), labels * share + labels.flip(0) * (1 - share)
    height, width = images.shape[2:]
    h, w = int(height * math.sqrt(1 - share)), int(width * math.sqrt(1 - share))
    top, left = (int(torch.randint(0, room + 1, (), generator=generator)) for room in (height - h, width - w))
    images = images.clone()
    images[:, :, top : top + h, left : left + w] = other[:, :, top : top + h, left : left + w]
    share = 1 - h * w / (height * width)
    return images, labels * share + labels.flip(0) * (1 - share)


class TrainingBatches:
    """Augmented and mixed batches in an order drawn anew each pass; labels are smoothed by 0.1. Sized."""

    def __init__(self, pictures: Pictures, batch_size: int, workers: int, generator: torch.Generator) -> None:
        self.pictures, self.batch_size, self.workers, self.generator = pictures, batch_size, workers, generator

    def __len__(self) -> int:
        return max(1, len(self.pictures) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.pictures), generator=self.generator).tolist()
        seeds = torch.randint(0, 2**62, (len(order),), generator=self.generator).tolist()
        items = list(zip(order, seeds, strict=True))
        batches = [items[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            self.pictures,
            batch_sampler=batches,
            num_workers=self.workers,
        )
        classes = len(self.pictures.classes)
        for images, labels in loader:
            smooth = functional.one_hot(labels, classes) * 0.9 + 0.1 / classes
            yield mixed(images, smooth, self.generator)


def top1_and_top5(model: torch.nn.Module, pictures: Pictures, batch_size: int, workers: int) -> tuple[float, float]:
    """Accuracy in per cent on centre crops, of the first and of the first five answers."""
    device = next(model.parameters()).device
    model.eval()
    first = fifth = 0
    with torch.no_grad():
        for images, labels in DataLoader(pictures, batch_size=batch_size, num_workers=workers):
            output = model(images.to(device))
            logits = getattr(output, "logits", output)
            hits = logits.topk(min(5, logits.shape[1])).indices.cpu() == labels[:, None]
            first, fifth = first + int(hits[:, 0].sum()), fifth + int(hits.sum())
    return 100 * first / len(pictures), 100 * fifth / len(pictures)
