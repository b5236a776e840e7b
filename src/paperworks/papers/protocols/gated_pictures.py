"""Training a backbone on listed pictures by the recipe that vision transformers of this size are trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.images import load_images
from paperworks.data.picture_crops import read_mini_imagenet
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.gated_training import parameter_groups
from paperworks.papers.protocols.learning_rates import rate_at
from paperworks.papers.protocols.pruning_pictures import Item, Pictures, TrainingBatches, top1_and_top5

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAGNITUDE, DEVIATION, OPERATIONS = 9, 0.5, 2
"""RandAugment: mean and deviation of the strength, out of 10, and operations a picture."""
GREY = (124, 116, 104)
NAMES = (
    "contrast stretched", "equalized", "inverted", "posterized", "solarized", "colour", "contrast", "brightness",
    "sharpness", "rotated", "sheared along x", "sheared along y", "moved along x", "moved along y",
)  # fmt: skip


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def altered(picture: Image.Image, name: str, strength: float) -> Image.Image:
    """One operation of RandAugment; the sign of `strength`, in [-1, 1], is the direction where it has one."""
    simple: dict[str, Callable[[Image.Image], Image.Image]] = {
        "contrast stretched": ImageOps.autocontrast,
        "equalized": ImageOps.equalize,
        "inverted": ImageOps.invert,
    }
    enhancers = {
        "colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    amount = abs(strength)
    if name in simple:
        return simple[name](picture)
    if name in enhancers:
        return enhancers[name](picture).enhance(1 + 0.9 * strength)
    if name == "posterized":
        return ImageOps.posterize(picture, 8 - round(4 * amount))
    if name == "solarized":
        return ImageOps.solarize(picture, 255 - round(255 * amount))
    if name == "rotated":
        return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=GREY)
    slant, move = 0.3 * strength, 0.45 * strength
    matrix = {
        "sheared along x": (1, slant, 0, 0, 1, 0),
        "sheared along y": (1, 0, 0, slant, 1, 0),
        "moved along x": (1, 0, move * picture.width, 0, 1, 0),
        "moved along y": (1, 0, 0, 0, 1, move * picture.height),
    }[name]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def rand_augmented(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    """`OPERATIONS` operations drawn from `NAMES`, each with probability 1/2 and a strength near `MAGNITUDE`."""
    for _ in range(OPERATIONS):
        name = NAMES[int(torch.randint(len(NAMES), (), generator=generator))]
        strength = MAGNITUDE + DEVIATION * float(torch.randn((), generator=generator))
        sign = 1 if _uniform(generator, 0, 1) < 0.5 else -1
        if _uniform(generator, 0, 1) < 0.5:
            picture = altered(picture, name, sign * min(max(strength, 0.0), 10.0) / 10)
    return picture


def _cropped(picture: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    """A random part of 8 to 100 % of the area at `size`, mirrored at random; small pictures are moved by an eighth."""
    width, height = picture.size
    if min(width, height) <= size:
        room = max(1, size // 8)
        padded = ImageOps.expand(picture.resize((size, size), Image.Resampling.BICUBIC), room, GREY)
        left, top = (int(torch.randint(0, 2 * room + 1, (), generator=generator)) for _ in range(2))
        part = padded.crop((left, top, left + size, top + size))
    else:
        area = width * height * _uniform(generator, 0.08, 1.0)
        aspect = math.exp(_uniform(generator, math.log(3 / 4), math.log(4 / 3)))
        w = max(1, min(width, round(math.sqrt(area * aspect))))
        h = max(1, min(height, round(math.sqrt(area / aspect))))
        left, top = (int(torch.randint(0, room + 1, (), generator=generator)) for room in (width - w, height - h))
        part = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return ImageOps.mirror(part) if _uniform(generator, 0, 1) < 0.5 else part


def _erased(image: Tensor, generator: torch.Generator) -> Tensor:
    """With probability 1/4 a rectangle of 2 to 33 % of the area becomes noise."""
    if _uniform(generator, 0, 1) < 0.25:
        _, height, width = image.shape
        area, aspect = _uniform(generator, 0.02, 0.33) * height * width, math.exp(_uniform(generator, -1.2, 1.2))
        h = max(1, min(height, round(math.sqrt(area / aspect))))
        w = max(1, min(width, round(math.sqrt(area * aspect))))
        top, left = (int(torch.randint(0, room + 1, (), generator=generator)) for room in (height - h, width - w))
        image[:, top : top + h, left : left + w] = torch.randn(3, h, w, generator=generator)
    return image


class AugmentedPictures(Pictures):
    """Pictures by path or in memory; items with a seed are cropped, altered and erased, others cut at the centre.

    Args:
        items: (path or uint8 (H, W, 3) tensor, label).
        classes: names.
        size: side in pixels.
    """

    def __init__(self, items: list[tuple[Path | Tensor, int]], classes: list[str], size: int) -> None:
        self.entries, self.classes, self.size = items, classes, size

    def __len__(self) -> int:
        return len(self.entries)

    def _picture(self, place: int) -> Image.Image:
        entry = self.entries[place][0]
        if isinstance(entry, Tensor):
            return Image.fromarray(entry.numpy())
        with Image.open(entry, formats=FORMATS) as picture:
            return picture.convert("RGB")

    def __getitem__(self, item: Item | int) -> tuple[Tensor, int]:
        """The normalised picture (3, size, size) and its label. Raises OSError for a file that is no picture."""
        place, seed = item if isinstance(item, tuple) else (item, None)
        picture, label = self._picture(place), self.entries[place][1]
        if seed is None:
            return _normalised(_centre(picture, self.size)), label
        generator = torch.Generator().manual_seed(seed)
        return _erased(
            _normalised(rand_augmented(_cropped(picture, self.size, generator), generator)), generator
        ), label


def _normalised(picture: Image.Image) -> Tensor:
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    image = raw.view(picture.height, picture.width, 3).permute(2, 0, 1) / 255
    mean, deviation = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return (image - mean[:, None, None]) / deviation[:, None, None]


def _centre(picture: Image.Image, size: int) -> Image.Image:
    """The shorter side to 256 / 224 of `size`, then the centre; a picture that is no larger is scaled to `size`."""
    scale = (size if min(picture.size) <= size else round(size * 256 / 224)) / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def parts_of(spec: str, size: int) -> tuple[AugmentedPictures, AugmentedPictures]:
    """Training and test pictures of `miniimagenet:PATH`, or of a spec of `load_images` with a published split."""
    scheme, _, root = spec.partition(":")
    if scheme == "miniimagenet":
        listed = read_mini_imagenet(root)
        first, second = (
            AugmentedPictures(list(part), list(listed.classes), size) for part in (listed.train, listed.test)
        )
        return first, second
    train, test = load_images(spec).convert("rgb").split(0)
    parts = []
    for part in (train, test):
        pixels = part.images.mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
        items: list[tuple[Path | Tensor, int]] = list(zip(pixels.unbind(), part.labels.tolist(), strict=True))
        parts.append(AugmentedPictures(items, part.classes, size))
    return parts[0], parts[1]


def train_on_pictures(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.gated_recipe.whole_recipe`."""
    settings, device = trial.settings, trial.device
    train, test = parts_of(settings["data"], settings["size"])
    width = settings["width"]
    with trial.global_generators("weights"):
        model = arm.build(
            len(train.classes),
            embed_dims=tuple(width * 2**i for i in range(4)),
            num_heads=tuple(max(1, width // 32) * 2**i for i in range(4)),
        ).to(device)
    peak = settings["lr"] * settings["batch_size"] / 1024
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=peak)
    batches = TrainingBatches(train, settings["batch_size"], settings["workers"], trial.generator("batches"))
    epochs, half = settings["epochs"], torch.bfloat16 if device.startswith("cuda") else None
    losses = []
    with trial.global_generators("training"):  # stochastic depth draws from the global generators
        for epoch in range(epochs):
            model.train()
            total = 0.0
            for step, (images, labels) in enumerate(batches):
                share = (epoch + (step + 1) / len(batches)) / epochs
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate_at(share, settings["warmup"] / epochs)
                optimizer.zero_grad()
                with torch.autocast(device.partition(":")[0], half, enabled=half is not None):
                    loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
            losses.append(total / len(batches))
            trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}")
    trial.curve("loss", losses)
    top1, top5 = top1_and_top5(model, test, settings["batch_size"], settings["workers"])
    return {"top1": top1, "top5": top5}
