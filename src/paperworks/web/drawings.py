"""Figures under a policy without inline style: what an SVG says in ``style`` is said in presentation attributes.

Presentation attributes are parsed as CSS, so ``var(--series-1)`` and ``light-dark(...)`` mean there what they mean in a
style sheet: a figure follows the page into dark mode as before.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

ATTRIBUTES = frozenset(
    {
        "clip-path", "clip-rule", "color", "dominant-baseline", "fill", "fill-opacity", "fill-rule", "font-family",
        "font-size", "font-stretch", "font-style", "font-variant", "font-weight", "image-rendering", "letter-spacing",
        "opacity", "shape-rendering", "stop-color", "stop-opacity", "stroke", "stroke-dasharray", "stroke-dashoffset",
        "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "stroke-opacity", "stroke-width", "text-anchor",
        "text-decoration", "text-rendering", "transform", "visibility", "word-spacing", "writing-mode",
    }
)  # fmt: skip
"""The properties that SVG has as attributes."""
_FONT = re.compile(r"(?P<before>.*?)\s*(?P<size>[\d.]+(?:px|pt|em|rem|%))(?:/\S+)?\s+(?P<family>.+)")
_WEIGHT = re.compile(r"\b(bold|bolder|lighter|[1-9]00)\b")


def without_style(svg: str) -> str:
    """`svg`, as `paperworks.lab.report.figures` makes it, without ``style`` attributes; what they said stays."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for name, value in declarations(element.attrib.pop("style", "")).items():
            element.set(name, value)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def declarations(style: str) -> dict[str, str]:
    """The declarations of a ``style`` that SVG has attributes for, the ``font`` shorthand taken apart."""
    found: dict[str, str] = {}
    for part in style.split(";"):
        name, colon, value = (text.strip() for text in part.partition(":"))
        if not colon:
            continue
        if name == "font" and (match := _FONT.fullmatch(value)):
            if weight := _WEIGHT.search(match["before"]):
                found["font-weight"] = weight[0]
            if style_word := re.search(r"italic|oblique", match["before"]):
                found["font-style"] = style_word[0]
            found |= {"font-size": match["size"], "font-family": match["family"]}
        elif name in ATTRIBUTES:
            found[name] = value
    return found
