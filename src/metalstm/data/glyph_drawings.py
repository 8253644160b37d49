"""How glyphs are drawn: characters of the world's scripts, each by twenty different hands.

Matplotlib comes with fonts of some thousand characters. Every character is a class. Its twenty drawings differ in font,
size, slant, stretch, rotation, stroke width, place and wobble. A script belongs to one split as a whole, so training
never sees the alphabets of meta-test.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from fontTools.ttLib import TTFont
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from metalstm.console import track
from metalstm.data.base import SPLITS

DRAWINGS = 20
SIZE = 28

VERSION = 1
# The pixels depend on the FreeType of Pillow and the fonts of matplotlib: a cache made with others must not be read.
KEY: str = f"glyphs-{VERSION}-pillow-{PIL.__version__}-matplotlib-{matplotlib.__version__}"

# script -> (split, code points). Of characters that look the same, the first one stays. meta-test comes first because
# its alphabets are small.
SCRIPTS: dict[str, tuple[str, str]] = {
    "Armenian": ("meta-test", "0531-0556 0561-0587"),
    "Georgian": ("meta-test", "10A0-10FA 2D00-2D2D"),
    "Hebrew": ("meta-test", "05D0-05F2 FB1D-FB4F"),
    "Lao": ("meta-test", "0E80-0EDF"),
    "NKo": ("meta-test", "07C0-07EA"),
    "Ogham": ("meta-test", "1680-169A"),
    "Old Italic": ("meta-test", "10300-10323"),
    "Tifinagh": ("meta-test", "2D30-2D6F"),
    "Arabic": ("meta-val", "0620-06D3 06F0-06FF 0750-077F FB50-FBB1 FE80-FEFC"),
    "Currency": ("meta-val", "20A0-20CF"),
    "Canadian Syllabics": ("meta-train", "1401-167F"),
    "Latin": ("meta-train", "0041-005A 0061-007A 00DE-00FE 0180-02AF 1D00-1D2B 1D6B-1D9A 2C60-2C7F A722-A7FF"),
    "Digits": ("meta-train", "0030-0039"),
    "Greek": ("meta-train", "0370-03FF"),
    "Cyrillic": ("meta-train", "0400-052F A640-A69F"),
    "Mathematical Script": ("meta-train", "1D49C-1D4CF 210A 210B 2110 2112 211B 212C 212F-2131 2133 2134"),
    "Fraktur": ("meta-train", "1D504-1D537 210C 2111 211C 2128 212D"),
    "Double-Struck": ("meta-train", "1D538-1D56B 1D7D8-1D7E1 2102 210D 2115 2119 211A 211D 2124 213C-2140"),
    "Arrows": ("meta-train", "2190-21FF"),
    "Mathematical Operators": ("meta-train", "2200-22FF"),
    "APL": ("meta-train", "2336-237A"),
    "Planets and Zodiac": ("meta-train", "2609-260D 263D-2653 26A2-26A9 26B3-26BC"),
    "Signs": ("meta-train", "2108 2114 2117 2118 211E 2127 2132 2625-2629 262E 2660-2667 2669-266F 2692-2697"),
}

# All fonts that have a character take turns, except those that draw another shape than the first font that has it.
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")
FONT_SIZE = 96
SMALLEST = 36  # in units of FONT_SIZE; smaller glyphs, such as dots and primes, would become blobs
LONGER_SIDE, CANVAS = 64, 80  # pixels of a glyph and its canvas; larger than SIZE, so that warping keeps it sharp
# Two glyphs with a cosine similarity above SAME are one picture (O and the Cyrillic О, but not Z and Ƶ). Two fonts draw
# the same shape of a character if the similarity is above ALIKE.
SAME, ALIKE = 0.94, 0.7

# How much hands differ: standard deviations, and the largest distance from the middle.
ROTATION = 0.15  # radians
SLANT = 0.2
STRETCH = 0.15
WOBBLE = 0.9  # pixels of a drawing
FARTHEST = 2.5  # pixels of a drawing


def _characters(code_points: str) -> list[str]:
    """The letters, digits and symbols in ranges such as "0041-005A 0061-007A", without the accented ones."""
    ranges = [[int(end, 16) for end in part.split("-")] for part in code_points.split()]
    characters = [chr(i) for ends in ranges for i in range(ends[0], ends[-1] + 1)]
    # Accents are too small to see at 28 x 28. An accented letter decomposes canonically ("0065 0301"); letters that
    # are forms of others, as in Arabic, have a tag in front ("<medial> 0628").
    return [
        c
        for c in characters
        if unicodedata.category(c)[0] in "LNS" and (unicodedata.decomposition(c) or "<").startswith("<")
    ]


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> UInt8[np.ndarray, "canvas canvas"] | None:
    """A character, centered, scaled to LONGER_SIDE and slightly blurred; None if it is too small."""
    page = Image.new("L", (4 * FONT_SIZE, 3 * FONT_SIZE))
    middle = (page.width / 2, page.height / 2)
    ImageDraw.Draw(page).text(middle, character, fill=255, font=font, anchor="mm")
    box = page.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < SMALLEST:
        return None
    ink = page.crop(box)
    scale = LONGER_SIDE / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(2)))


def _candidates() -> Iterator[tuple[str, UInt8[np.ndarray, "fonts canvas canvas"]]]:
    """The class name of each character and its glyphs in all fonts that have it, in the order of SCRIPTS."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [
        (
            ImageFont.truetype(folder / name, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC),
            TTFont(folder / name).getBestCmap() or {},
        )
        for name in FONTS
    ]
    for script, (_, code_points) in track(SCRIPTS.items(), "rendering characters", total=len(SCRIPTS)):
        for character in _characters(code_points):
            glyphs = [_glyph(character, font) for font, characters in fonts if ord(character) in characters]
            glyphs = [glyph for glyph in glyphs if glyph is not None]
            if glyphs:
                yield f"{script}/U+{ord(character):04X}", np.stack(glyphs)


def _distinct() -> dict[str, UInt8[np.ndarray, "fonts canvas canvas"]]:
    """The classes: all candidates that do not look like an earlier one in any font."""
    candidates = list(_candidates())
    glyphs = np.concatenate([glyphs for _, glyphs in candidates])

    # Integers from 0 to 63: float32 sums of their products are exact, so rounding never decides which classes exist.
    small = glyphs.reshape(-1, 20, CANVAS // 20, 20, CANVAS // 20).sum((2, 4)) // 64
    small = small.reshape(-1, 400).astype(np.float32)
    similarity = small @ small.T
    norm = np.sqrt(similarity.diagonal())
    similarity /= norm[:, None] * norm

    classes, taken, start = {}, np.zeros(len(glyphs), bool), 0
    for name, in_fonts in candidates:
        own = np.arange(start, start + len(in_fonts))
        own = own[similarity[start, own] > ALIKE]
        start += len(in_fonts)
        if similarity[own][:, taken].max(initial=0) < SAME:
            classes[name] = glyphs[own]
            taken[own] = True
    return classes


def _smooth_noise(rng: np.random.Generator) -> Float64[np.ndarray, "drawings 2 size size"]:
    """Displacements that vary smoothly: a 5 x 5 grid of normal numbers, interpolated."""
    distance = np.linspace(0, 4, SIZE)[:, None] - np.arange(5)
    weight = np.exp(-(distance**2) / 0.72)
    weight /= weight.sum(1, keepdims=True)
    return weight @ rng.normal(size=(DRAWINGS, 2, 5, 5)) @ weight.T


def _drawings(
    glyphs: UInt8[np.ndarray, "fonts canvas canvas"], rng: np.random.Generator
) -> UInt8[np.ndarray, "drawings size size"]:
    """One character, drawn by twenty hands."""
    inked = glyphs[np.arange(DRAWINGS) % len(glyphs)].astype(np.float64)
    inked /= inked.max((1, 2), keepdims=True)  # because the blur makes thin strokes faint

    # A hand is a matrix from glyph to drawing: it stretches, then slants, then rotates.
    angle, slant, stretch = rng.normal(size=(3, DRAWINGS)) * [[ROTATION], [SLANT], [STRETCH]]
    zero, one = np.zeros(DRAWINGS), np.ones(DRAWINGS)
    stretching = np.stack([np.exp(stretch), zero, zero, np.exp(-stretch)], -1).reshape(-1, 2, 2)
    slanting = np.stack([one, slant, zero, one], -1).reshape(-1, 2, 2)
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    hand = rotation @ slanting @ stretching

    # Scale so that the character fills 60 to 80 % of the frame with every hand, then move it within the frame.
    from_center = np.abs(np.arange(CANVAS) - (CANVAS - 1) / 2)
    half_box = np.stack([((inked.max(axis) > 0.2) * from_center).max(1) for axis in (1, 2)], -1)[:, :, None]
    half_drawn = np.abs(hand) @ half_box  # (drawings, 2, 1)
    scale = rng.uniform(0.3, 0.4, (DRAWINGS, 1, 1)) * SIZE / half_drawn.max(1, keepdims=True)
    hand *= scale
    place = rng.uniform(-1, 1, (DRAWINGS, 2, 1)) * np.minimum(FARTHEST, SIZE / 2 - 2 - half_drawn * scale)

    # Each pixel of a drawing looks up its place on the canvas, between four pixels of the canvas.
    pixel = np.arange(SIZE) - (SIZE - 1) / 2
    x, y = np.meshgrid(pixel, pixel)
    target = (np.stack([x, y]) + WOBBLE * _smooth_noise(rng)).reshape(DRAWINGS, 2, -1) - place
    source = np.clip(np.linalg.inv(hand) @ target + (CANVAS - 1) / 2, 0, CANVAS - 1.001)
    corner = source.astype(np.intp)
    (right, down), (column, row) = np.moveaxis(source - corner, 1, 0), np.moveaxis(corner, 1, 0)
    k = np.arange(DRAWINGS)[:, None]
    above = inked[k, row, column] * (1 - right) + inked[k, row, column + 1] * right
    below = inked[k, row + 1, column] * (1 - right) + inked[k, row + 1, column + 1] * right
    ink = above * (1 - down) + below * down

    # The glyph is blurred, so the level at which ink begins sets the width of strokes.
    level = rng.uniform(0.18, 0.45, (DRAWINGS, 1))
    ink = np.clip((ink - level) / 0.35 + 0.5, 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(DRAWINGS, SIZE, SIZE)


def render() -> tuple[UInt8[np.ndarray, "images 28 28 1"], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Draw the whole data set, with the same pixels every time.

    Returns:
        The images, ink 255 on 0, with the twenty of a class in a row; the class names in the order of the images, which
        is sorted, for example "Georgian/U+10D0"; and the class names of each split.
    """
    classes = _distinct()
    names = tuple(sorted(classes))
    images = np.empty((len(names), DRAWINGS, SIZE, SIZE, 1), np.uint8)
    for i, name in enumerate(track(names, "drawing glyphs")):
        # The code point is the seed: the drawings of a class do not depend on the other classes.
        rng = np.random.default_rng([VERSION, int(name.partition("U+")[2], 16)])
        images[i, ..., 0] = _drawings(classes[name], rng)
    splits = {split: tuple(name for name in names if SCRIPTS[name.partition("/")[0]][0] == split) for split in SPLITS}
    return images.reshape(-1, SIZE, SIZE, 1), names, splits
