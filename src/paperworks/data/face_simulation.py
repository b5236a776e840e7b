"""Drawn faces with every label that a face data set has: identity, expression, age, attributes. Offline, seeded.

An identity is a vector of geometry and colours. Expressions move brows, lids and mouth; age is the strength of fine
horizontal texture on the skin, and grey hair; attributes are glasses, hats, beards and the like. Place, scale, light,
background and noise differ from picture to picture. They are drawings: what they can show is which parts of a network
find fine texture, shape, and both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["GEOMETRY", "RenderedFaces", "face_geometry", "render_faces"]

GEOMETRY = (
    "width", "height", "jaw", "eye distance", "eye height", "eye size", "brow thickness", "nose length", "nose width",
    "mouth width", "mouth height", "skin", "hair red", "hair light", "iris", "hair length",
)  # fmt: skip
"""The numbers of an identity, each standard normal. Above zero of "hair length" is called gender 0."""
SURPRISE, FEAR, DISGUST, HAPPY, SAD, ANGER, NEUTRAL = range(7)
#             brows up, inner brow up, lids open, mouth curve, mouth open, mouth width
MOVES = (
    (1.0, 0.2, 0.8, 0.0, 1.0, -0.4),
    (0.6, 0.9, 0.9, -0.4, 0.5, 0.5),
    (-0.5, -0.3, -0.6, -0.5, 0.2, -0.1),
    (0.1, 0.0, -0.3, 1.0, 0.4, 0.5),
    (0.1, 1.0, -0.3, -1.0, 0.0, -0.1),
    (-0.8, -1.0, 0.3, -0.2, 0.0, -0.4),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
)
OLDEST, YOUNGEST, GROWN_UP, STILL_YOUNG = 80.0, 5.0, 18.0, 35.0
CHUNK = 256
FINEST = 48
"""Cells of the texture along a side, at most."""


@dataclass(frozen=True, eq=False)
class RenderedFaces:
    """Faces and what they show.

    Attributes:
        images: float32 (N, 3, size, size) in [0, 1].
        targets: by task, (N,): ``"identity"``, ``"expression"`` (RAF-DB's order: surprise, fear, disgust, happiness,
            sadness, anger, neutral), ``"gender"`` and further attributes int64; ``"age"`` float32, years.
        geometry: (identities, 16), the identities.
    """

    images: Tensor
    targets: Mapping[str, Tensor]
    geometry: Tensor

    def __len__(self) -> int:
        return len(self.images)


def face_geometry(identities: int, generator: torch.Generator) -> Tensor:
    """Identities to draw: (identities, 16) standard normal numbers, within two deviations."""
    if identities < 1:
        raise ValueError(f"identities: got {identities}, wanted 1 or more")
    return torch.randn(identities, len(GEOMETRY), generator=generator).clamp(-2, 2)


def render_faces(
    n: int,
    size: int,
    generator: torch.Generator,
    *,
    identities: int = 64,
    geometry: Tensor | None = None,
    expression_strength: tuple[float, float] = (0.5, 1.0),
    noise: float = 0.03,
) -> RenderedFaces:
    """`n` faces of `size` x `size` pixels.

    Args:
        n: how many.
        size: side in pixels, 16 or more.
        generator: draws everything.
        identities: how many people there are; they come equally often.
        geometry: the people (identities, 16), of `face_geometry` or another call's `RenderedFaces`; drawn by default.
        expression_strength: smallest and largest share of an expression's full movement.
        noise: standard deviation of the noise of each pixel.

    Raises ValueError for numbers that make no sense.
    """
    if n < 1 or size < 16:
        raise ValueError(f"n, size: got {n} and {size}, wanted 1 or more faces of 16 or more pixels")
    if not 0 <= expression_strength[0] <= expression_strength[1]:
        raise ValueError(f"expression_strength: got {expression_strength}, wanted a smaller and a larger number >= 0")
    if geometry is None:
        geometry = face_geometry(identities, generator)
    elif geometry.dim() != 2 or geometry.shape[1] != len(GEOMETRY) or not len(geometry):
        raise ValueError(f"geometry: got the shape {tuple(geometry.shape)}, wanted (identities, {len(GEOMETRY)})")
    who = torch.arange(n) % len(geometry)
    who = who[torch.randperm(n, generator=generator)]
    targets = _targets(geometry[who], generator) | {"identity": who}
    low, high = expression_strength
    moves = torch.tensor(MOVES)[targets["expression"]] * (low + (high - low) * _uniform(generator, n, 1))
    moves[:, 4] = torch.where(targets["mouth_slightly_open"] == 1, moves[:, 4].clamp_min(0.3), moves.new_zeros(n))
    parts = [
        _draw(geometry[who[rows]], moves[rows], {k: v[rows].float() for k, v in targets.items()}, size, generator)
        for rows in torch.arange(n).split(CHUNK)
    ]
    images = torch.cat(parts)
    images += noise * torch.randn(images.shape, generator=generator)
    return RenderedFaces(images.clamp_(0, 1), targets, geometry)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator)


def _targets(geometry: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    n = len(geometry)

    def chance(p: float, of: Tensor | None = None) -> Tensor:
        drawn = _uniform(generator, n) < p
        return drawn if of is None else drawn & of

    gender = geometry[:, GEOMETRY.index("hair length")] < 0
    expression = torch.randint(0, 7, (n,), generator=generator)
    age = YOUNGEST + (OLDEST - YOUNGEST) * _uniform(generator, n)
    opens = (expression == SURPRISE) | (expression == FEAR)
    found = {
        "gender": gender,
        "young": age < STILL_YOUNG,
        "smiling": expression == HAPPY,
        "mouth_slightly_open": opens | chance(0.5, (expression == HAPPY) | (expression == DISGUST)),
        "eyeglasses": chance(0.35),
        "wearing_hat": chance(0.25),
        "bangs": chance(0.35),
        "gray_hair": chance(0.75, age > 50),
        "no_beard": ~chance(0.5, gender & (age > GROWN_UP)),
        "wearing_lipstick": chance(0.5, ~gender & (age > GROWN_UP)),
        "wearing_necktie": chance(0.3),
    }
    return {k: v.long() for k, v in found.items()} | {"expression": expression, "age": age}


class _Canvas:
    """Pictures (N, 3, size, size) and soft shapes on them, in coordinates from -1 to 1, x to the right and y down."""

    def __init__(self, n: int, size: int, move: Tensor, scale: Tensor) -> None:
        axis = (torch.arange(size) + 0.5) / size * 2 - 1
        self.x = (axis[None, None] - move[:, 0, None, None]) / scale[:, None, None]
        self.y = (axis[None, :, None] - move[:, 1, None, None]) / scale[:, None, None]
        self.edge = size / 3.0
        self.image = torch.zeros(n, 3, size, size)

    def inside(self, distance: Tensor) -> Tensor:
        """1 where a signed distance is below zero, 0 above, soft over about a pixel."""
        return torch.sigmoid(-distance * self.edge * 2)

    def ellipse(self, x: Tensor | float, y: Tensor | float, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Inside of an ellipse; numbers or (N, 1, 1)."""
        dx, dy = (self.x - x) / a, (self.y - y) / b
        radius = (dx * dx + dy * dy).clamp_min(1e-8).sqrt()
        slope = ((dx / a) ** 2 + (dy / b) ** 2).clamp_min(1e-8).sqrt() / radius
        return self.inside((radius - 1) / slope)

    def curve(
        self, x: Tensor | float, y: Tensor | float, half: Tensor, bend: Tensor, slope: Tensor | float, thick: Tensor
    ) -> Tensor:
        """A stroke around y + slope t + bend t^2 for t = (x - x0) / half from -1 to 1."""
        t = (self.x - x) / half
        off = (self.y - (y + slope * t + bend * t * t)).abs() - thick
        return self.inside(torch.maximum(off, (t.abs() - 1) * half))

    def paint(self, mask: Tensor, colour: Tensor) -> None:
        """Cover with a colour (N, 3) where the mask (N, size, size) is 1."""
        self.image += mask[:, None] * (colour[:, :, None, None] - self.image)


def _draw(
    geometry: Tensor, moves: Tensor, shown: Mapping[str, Tensor], size: int, generator: torch.Generator
) -> Tensor:
    n = len(geometry)
    g = {name: column[:, None, None] for name, column in zip(GEOMETRY, geometry.T, strict=True)}
    on = {name: values[:, None, None] for name, values in shown.items()}
    canvas = _Canvas(n, size, 0.16 * (_uniform(generator, n, 2) - 0.5), 0.95 + 0.15 * _uniform(generator, n))
    background = 0.15 + 0.7 * _uniform(generator, n, 3)
    canvas.paint(torch.ones(n, size, size), background)
    tone = (0.55 + 0.13 * geometry[:, 11:12]).clamp(0.25, 0.85)
    skin = torch.cat([tone + 0.15, tone, tone - 0.1], 1).clamp(0.05, 1)
    light = (0.3 + 0.12 * geometry[:, 13:14]).clamp(0.05, 0.7)
    own = torch.cat([light + 0.08 * geometry[:, 12:13].clamp_min(-1), light * 0.8, light * 0.5], 1).clamp(0, 1)
    grey = shown["gray_hair"][:, None]
    hair = own + grey * (torch.tensor([[0.72, 0.72, 0.75]]) - own)
    a, b = 0.5 + 0.035 * g["width"], 0.66 + 0.035 * g["height"]
    long = canvas.ellipse(0.0, 0.05, a + 0.14, b + 0.2) * (canvas.y < 0.35 + 0.25 * g["hair length"].clamp_min(0))
    short = canvas.ellipse(0.0, -0.12, a + 0.1, b + 0.04) * (canvas.y < 0.05)
    canvas.paint(torch.where(g["hair length"] > 0, long, short), hair)
    _clothes(canvas, on, skin, generator)
    squeeze = 1 - (0.1 + 0.06 * g["jaw"]) * canvas.y.clamp_min(0)
    face = canvas.ellipse(0.0, 0.05, a * squeeze, b)
    canvas.paint(face, skin)
    _wrinkles(canvas, face, on["age"], generator)
    _features(canvas, g, moves, on, skin, hair)
    canvas.paint(on["bangs"] * canvas.ellipse(0.0, -0.52, a * 0.95, 0.2), hair)
    cloth = 0.1 + 0.8 * _uniform(generator, n, 3)
    hat = torch.maximum(
        canvas.ellipse(0.0, -0.68, a * 0.95, 0.3) * (canvas.y < -0.5), canvas.ellipse(0.0, -0.5, a + 0.22, 0.06)
    )
    canvas.paint(on["wearing_hat"] * hat, cloth)
    slope = 0.25 * (_uniform(generator, n, 2) - 0.5)
    shade = 1 + slope[:, 0, None, None] * canvas.x + slope[:, 1, None, None] * canvas.y
    return canvas.image * (shade * (0.85 + 0.3 * _uniform(generator, n, 1, 1)))[:, None]


def _clothes(canvas: _Canvas, on: Mapping[str, Tensor], skin: Tensor, generator: torch.Generator) -> None:
    n = len(skin)
    canvas.paint(canvas.ellipse(0.0, 0.8, 0.2, 0.35), skin * 0.9)
    canvas.paint(canvas.ellipse(0.0, 1.25, 0.95, 0.4), 0.2 + 0.6 * _uniform(generator, n, 3))
    tie = canvas.inside(canvas.x.abs() - 0.08) * canvas.inside(0.82 - canvas.y)
    canvas.paint(on["wearing_necktie"] * tie, torch.tensor([[0.75, 0.1, 0.12]]).expand(n, 3))


def _wrinkles(canvas: _Canvas, face: Tensor, age: Tensor, generator: torch.Generator) -> None:
    """Fine horizontal texture on the skin, stronger with age."""
    size = face.shape[-1]
    cells = min(size, FINEST)
    texture = torch.randn(len(face), 1, cells, cells, generator=generator)
    texture = F.avg_pool2d(F.pad(texture, (1, 1, 0, 0), mode="circular"), (1, 3), 1) * 3**0.5
    if cells < size:
        texture = F.interpolate(texture, (size, size), mode="bilinear", align_corners=False)
    strength = 0.12 * (age - YOUNGEST) / (OLDEST - YOUNGEST)
    canvas.image += texture * (face * strength)[:, None]


def _features(
    canvas: _Canvas, g: Mapping[str, Tensor], moves: Tensor, on: Mapping[str, Tensor], skin: Tensor, hair: Tensor
) -> None:
    up, inner, lids, bend, gape, wide = (m[:, None, None] for m in moves.T)
    n = len(skin)
    dark, white = torch.full((n, 3), 0.08), torch.full((n, 3), 0.93)
    apart, height = 0.21 + 0.02 * g["eye distance"], -0.08 + 0.02 * g["eye height"]
    radius = 0.095 + 0.01 * g["eye size"]
    iris = torch.stack([0.25 - 0.08 * g["iris"], 0.25 + 0 * g["iris"], 0.25 + 0.1 * g["iris"]], 1)[:, :, 0, 0].clamp(
        0, 1
    )
    for side in (-1.0, 1.0):
        open_by = (radius * (0.62 + 0.3 * lids)).clamp_min(0.025)
        canvas.paint(canvas.ellipse(side * apart, height, radius * 1.2, open_by), white)
        canvas.paint(canvas.ellipse(side * apart, height, radius * 0.55, torch.minimum(open_by, radius * 0.55)), iris)
        brow = height - 0.17 - 0.09 * up
        thick = (0.028 + 0.008 * g["brow thickness"]).clamp_min(0.012)
        slope = side * 0.1 * inner
        stroke = canvas.curve(side * apart, brow, 0.13 + 0 * brow, 0.02 + 0 * brow, slope, thick)
        canvas.paint(stroke, hair * 0.6)
        ring = canvas.ellipse(side * apart, height, 0.17, 0.15) - canvas.ellipse(side * apart, height, 0.13, 0.11)
        canvas.paint(on["eyeglasses"] * ring.clamp(0, 1), dark)
    bridge = canvas.inside(torch.maximum(canvas.x.abs() - apart + 0.15, (canvas.y - height).abs() - 0.02))
    canvas.paint(on["eyeglasses"] * bridge, dark)
    tip = 0.2 + 0.03 * g["nose length"]
    nose = canvas.ellipse(0.0, tip, (0.085 + 0.018 * g["nose width"]).clamp_min(0.03), 0.05)
    canvas.paint(nose * 0.6, skin * 0.65)
    place, half = 0.42 + 0.02 * g["mouth height"], 0.19 + 0.02 * g["mouth width"] + 0.05 * wide
    beard = canvas.ellipse(0.0, 0.55, 0.36, 0.24) - canvas.ellipse(0.0, 0.42, 0.24, 0.08)
    canvas.paint((1 - on["no_beard"]) * beard.clamp(0, 1), hair * 0.8)
    lips = skin * torch.tensor([[0.85, 0.6, 0.6]])
    painted = on["wearing_lipstick"][:, :, 0]
    lips = lips + painted * (torch.tensor([[0.8, 0.08, 0.2]]) - lips)
    middle, rise = place + 0.07 * bend, -0.15 * bend
    canvas.paint(canvas.curve(0.0, middle, half, rise, 0.0, 0.035 + 0.08 * gape), lips)
    canvas.paint((gape > 0) * canvas.curve(0.0, middle, half * 0.8, rise, 0.0, 0.07 * gape), dark)
