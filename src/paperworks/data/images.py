"""Labelled images by a spec: `digits`, `imagefolder:PATH`, `npz:PATH`, `idx:PATH`, `cifar:PATH`.

`load_images(spec)` gives one `ImageData`, whatever the files: float32 (N, C, H, W) in [0, 1], labels and class names.
`ImageData.split` is the one way to a training and a test set: the published split where the data set has one, else a
split stratified by class and made from a seed.

Every spec takes the options `size` (`?size=32`, `?size=32x48` for height x width: `ImageData.resize`) and `mode`
(`?mode=gray`, `?mode=rgb`: `ImageData.convert`). The options of a single scheme stand with its reader:
`image_arrays.read_npz`, `cifar.read_cifar`, `image_folders.read_image_folder`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from paperworks.data.sources import Source, data_signature, parse_source

__all__ = [
    "ImageData",
    "convert",
    "data_signature",
    "load_images",
    "published_split",
    "require_memory",
    "resize",
    "stratified_sample",
]

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in gray: ITU-R BT.601, as in JPEG."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A set of labelled images.

    Attributes:
        name: short name for tables.
        images: float32 (N, C, H, W), values in [0, 1].
        labels: int64 (N,), each an index into `classes`.
        classes: names of the classes; a class may have no image here.
        held_out: bool (N,), True for the test part of a split that the data set publishes; None where it has none.

    Raises ValueError or TypeError at construction where these do not fit together.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: list[str]
    held_out: Tensor | None = None

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if x.dtype != torch.float32 or x.ndim != 4 or y.dtype != torch.int64 or y.shape != x.shape[:1]:
            got = f"images {x.dtype} {tuple(x.shape)} and labels {y.dtype} {tuple(y.shape)}"
            raise TypeError(f"{self.name}: got {got}, wanted float32 (N, C, H, W) and int64 (N,)")
        if x.numel() == 0:
            raise ValueError(f"{self.name}: got images of shape {tuple(x.shape)}, wanted at least one value")
        low, high = (float(v) for v in torch.aminmax(x))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{self.name}: got pixel values from {low:g} to {high:g}, wanted [0, 1]")
        if int(y.min()) < 0 or int(y.max()) >= len(self.classes):
            got = f"labels from {int(y.min())} to {int(y.max())}"
            raise ValueError(f"{self.name}: got {got}, wanted an index into {len(self.classes)} classes")
        if self.held_out is not None:
            if self.held_out.dtype != torch.bool or self.held_out.shape != y.shape:
                raise TypeError(f"{self.name}: held_out must be bool of shape {tuple(y.shape)}")
            if bool(self.held_out.all()) or not bool(self.held_out.any()):
                raise ValueError(f"{self.name}: held_out has one part only, wanted a training and a test part")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of square images. Raises ValueError for others: their sizes are in `images.shape`."""
        height, width = self.images.shape[2:]
        if height != width:
            raise ValueError(f"{self.name}: got images of {height}x{width}, wanted square ones: use ?size= or resize()")
        return height

    def split(
        self,
        seed: int,
        *,
        test_fraction: float = 0.5,
        sizes: tuple[int, int] | None = None,
        resplit: bool = False,
    ) -> tuple[ImageData, ImageData]:
        """A training and a test set without a common image, the same ones for the same seed.

        Where the data set publishes a split, that is it: the seed only orders both parts, and chooses among them
        where `sizes` asks for fewer. Else, and with `resplit`, every class is divided in the same proportion, to less
        than one image.

        Args:
            seed: makes the choice and the order.
            test_fraction: share of the test set, in (0, 1). Without effect on a published split.
            sizes: (training images, test images) instead of the fraction; what is over stays out.
            resplit: divide all images anew although the data set publishes a split.

        Raises ValueError for a fraction outside (0, 1), for sizes that are not there, and where a part would be empty.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.held_out is not None and not resplit:
            train, test = torch.nonzero(~self.held_out).flatten(), torch.nonzero(self.held_out).flatten()
            n_train, n_test = (len(train), len(test)) if sizes is None else sizes
            self._check_sizes(n_train, n_test, len(train), len(test))
            train = train[stratified_sample(self.labels[train], n_train, generator)]
            test = test[stratified_sample(self.labels[test], n_test, generator)]
            return self._at(train, None), self._at(test, None)
        if sizes is None:
            if not 0 < test_fraction < 1:
                raise ValueError(f"test_fraction: got {test_fraction!r}, wanted a number in (0, 1)")
            n_test = int(len(self) * test_fraction + 0.5)
            n_train = len(self) - n_test
        else:
            n_train, n_test = sizes
        self._check_sizes(n_train, n_test, len(self) - n_test, len(self) - n_train)
        test = stratified_sample(self.labels, n_test, generator)
        free = torch.ones(len(self), dtype=torch.bool)
        free[test] = False
        rest = torch.nonzero(free).flatten()
        train = rest[stratified_sample(self.labels[rest], n_train, generator)]
        return self._at(train, None), self._at(test, None)

    def _check_sizes(self, n_train: int, n_test: int, most_train: int, most_test: int) -> None:
        if not (1 <= n_train <= most_train and 1 <= n_test <= most_test):
            got = f"sizes {n_train} (train) and {n_test} (test) of {len(self)} images"
            wanted = f"at least 1 and at most {max(most_train, 0)} and {max(most_test, 0)}"
            raise ValueError(f"{self.name}: got {got}, wanted {wanted}")

    def subset(self, n: int, seed: int) -> ImageData:
        """`n` of the images, each class (and each part of a published split) in its proportion, to less than one."""
        least = 1 if self.held_out is None else 2
        if not least <= n <= len(self):
            raise ValueError(f"n: got {n}, wanted {least} to {len(self)} images of {self.name}")
        generator = torch.Generator().manual_seed(seed)
        return self._at(stratified_sample(self.labels, n, generator, self.held_out), self.held_out)

    def resize(self, size: int | tuple[int, int]) -> ImageData:
        """The same images at `size` (a side, or (height, width)): scaled to cover it, then cut at the centre."""
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"size: got {size!r}, wanted positive numbers")
        return dataclasses.replace(self, images=resize(self.images, height, width))

    def convert(self, mode: str) -> ImageData:
        """The same images with one channel (`mode="gray"`) or three ("rgb")."""
        return dataclasses.replace(self, images=convert(self.images, mode))

    def _at(self, index: Tensor, held_out: Tensor | None) -> ImageData:
        part = None if held_out is None else held_out[index]
        return ImageData(self.name, self.images[index], self.labels[index], list(self.classes), part)


def load_images(spec: str) -> ImageData:
    """The images that `spec` names.

    Args:
        spec: `digits` (scikit-learn's 1,797 digits of 8x8), `imagefolder:PATH`, `npz:PATH`, `idx:PATH` or `cifar:PATH`,
            with options as in `imagefolder:PATH?size=32&mode=gray`.

    Raises ValueError (TypeError for no string) that says what was found and what was wanted: an unknown scheme or
    option, a path that is not there (`DataNotFoundError`), files that are not as their format says.
    """
    source = parse_source(spec, "images")
    size, mode = source.size(), source.choice("mode", ("gray", "rgb"))
    data = _read(source)
    if mode is not None:
        data = data.convert(mode)
    return data if size is None else data.resize(size)


def _read(source: Source) -> ImageData:
    # the readers import this module, and bring in archive and image libraries that the others do not need
    if source.scheme == "imagefolder":
        from paperworks.data.image_folders import read_image_folder

        return read_image_folder(source)
    if source.scheme in ("npz", "idx", "cifar"):
        from paperworks.data import cifar, image_arrays

        readers = {"npz": image_arrays.read_npz, "idx": image_arrays.read_idx, "cifar": cifar.read_cifar}
        return readers[source.scheme](source)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).div(16).unsqueeze(1)
    return ImageData("digits", images, torch.from_numpy(digits.target).long(), [str(c) for c in digits.target_names])


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """float (N, C, h, w) in [0, 1] as (N, C, height, width): scaled (bilinear, antialiased) to cover it, then cut."""
    h, w = images.shape[2:]
    if (h, w) == (height, width):
        return images
    scale = max(height / h, width / w)
    tall, wide = max(height, round(h * scale)), max(width, round(w * scale))
    top, left = (tall - height) // 2, (wide - width) // 2
    made = images.new_empty(len(images), images.shape[1], height, width)
    for start in range(0, len(images), 256):  # the scaled images in full would be a second data set in memory
        block = slice(start, start + 256)
        scaled = F.interpolate(images[block], (tall, wide), mode="bilinear", align_corners=False, antialias=True)
        made[block] = scaled[:, :, top : top + height, left : left + width]
    return made.clamp_(0, 1)


def convert(images: Tensor, mode: str) -> Tensor:
    """(N, 1 or 3, H, W) with one channel for "gray" (ITU-R BT.601 luma) or three for "rgb"."""
    channels = images.shape[1]
    if mode not in ("gray", "rgb") or channels not in (1, 3):
        raise ValueError(f"mode: got {mode!r} for {channels} channels, wanted 'gray' or 'rgb' for images with 1 or 3")
    if mode == "rgb":
        return images.repeat(1, 3, 1, 1) if channels == 1 else images
    if channels == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA)).unsqueeze(1).clamp_(0, 1)


def stratified_sample(labels: Tensor, n: int, generator: torch.Generator, held_out: Tensor | None = None) -> Tensor:
    """Indices of `n` of the items, in random order: of every label its share of `n`, to less than one item.

    With `held_out` (bool, as long as `labels`) the two parts are sampled in their proportion, each at least once where
    `n` allows, and the labels within them.
    """
    if held_out is not None and n > 1:
        train, test = torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
        n_test = min(max(round(n * len(test) / len(labels)), 1, n - len(train)), n - 1, len(test))
        pairs = ((train, n - n_test), (test, n_test))
        both = torch.cat([part[stratified_sample(labels[part], k, generator)] for part, k in pairs])
        return both[torch.randperm(n, generator=generator)]
    order = torch.randperm(len(labels), generator=generator)
    counts = torch.unique(labels, return_counts=True)[1]
    quotas = _shares(counts.tolist(), n, torch.randperm(len(counts), generator=generator).tolist())
    by_label = order[torch.argsort(labels[order], stable=True)]
    ranks = torch.arange(len(labels)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    chosen = by_label[ranks < torch.repeat_interleave(torch.tensor(quotas), counts)]
    return chosen[torch.randperm(n, generator=generator)]


def _shares(counts: Sequence[int], n: int, tie_order: Sequence[int]) -> list[int]:
    """`n` divided in proportion to `counts` by largest remainder, in whole numbers, never more than a count."""
    total = sum(counts)
    shares = [n * count // total for count in counts]
    by_remainder = sorted(tie_order, key=lambda i: -(n * counts[i] % total))
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return shares


def published_split(held_out: Tensor) -> Tensor | None:
    """`held_out` where it divides the images in two parts, None where all are in one."""
    return held_out if bool(held_out.any()) and not bool(held_out.all()) else None


def require_memory(source: Source, shape: tuple[int, ...]) -> None:
    """Raise ValueError where float32 images of `shape` do not fit in the memory that is free now."""
    need = 4
    for n in shape:
        need *= n
    free = psutil.virtual_memory().available
    if need > free:
        found = f"images that take {need / 2**30:,.1f} GiB as float32 {shape}"
        raise source.error(found, f"at most the {free / 2**30:,.1f} GiB that are free (see the options size, limit)")
