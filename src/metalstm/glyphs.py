"""Built-in data: the characters of the world's scripts, each drawn by twenty different hands.

A stand-in for Omniglot that needs no file and no network. Matplotlib carries fonts with some thousand characters; every
character is a class, and its twenty drawings differ in font, size, slant, stretch, rotation, stroke width, place
and wobble. Whole scripts belong to one split, so the alphabets of meta-test are never seen in training.
"""

import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from fontTools.ttLib import TTFont
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from metalstm.console import track

DRAWINGS = 20
SIZE = 28
SPLITS = ("meta-train", "meta-val", "meta-test")

VERSION = 1
# The pixels depend on Pillow's FreeType and on matplotlib's fonts, so a cache made with others must not be read.
KEY: str = f"glyphs-{VERSION}-pillow-{PIL.__version__}-matplotlib-{matplotlib.__version__}"

# script -> (split, code points). Of characters that look the same the first one stays: meta-test comes first, so its
# alphabets stay whole and training gives way.
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
    "Mathematical Script": ("meta-train", "1D49C-1D4CF"),
    "Fraktur": ("meta-train", "1D504-1D537"),
    "Double-Struck": ("meta-train", "1D538-1D56B 1D7D8-1D7E1"),
    "Letterlike Symbols": ("meta-train", "2100-214F"),
    "Arrows": ("meta-train", "2190-21FF"),
    "Mathematical Operators": ("meta-train", "2200-22FF"),
    "Technical Symbols": ("meta-train", "2300-237A"),
    "Miscellaneous Symbols": ("meta-train", "2600-26FF"),
}

# The first font that has a character decides whether it looks like another; all that have it take turns in drawing.
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")
FONT_SIZE = 96
SMALLEST = 36  # of FONT_SIZE: dots and primes would be blown up to blobs
LONGER_SIDE, CANVAS = 64, 80  # a glyph on its canvas, before it is drawn at SIZE: large, so that warping stays sharp
SAME = 0.94  # cosine similarity above which two glyphs are one picture: Z and Ƶ stay apart, О and O don't

# How much hands differ, as standard deviations.
ROTATION = 0.12  # radians
SLANT = 0.2
STRETCH = 0.15
WOBBLE = 0.9  # pixels of a drawing


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> UInt8[np.ndarray, "canvas canvas"] | None:
    """A character, centred and scaled to fill its canvas, slightly blurred; None where it is too small."""
    page = Image.new("L", (4 * FONT_SIZE, 4 * FONT_SIZE))
    ImageDraw.Draw(page).text((2 * FONT_SIZE, 2 * FONT_SIZE), character, fill=255, font=font, anchor="mm")
    box = page.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < SMALLEST:
        return None
    ink = page.crop(box)
    scale = LONGER_SIDE / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(2)))


def _characters(code_points: str) -> list[str]:
    """The letters, digits and symbols of "0041-005A 0061-007A"."""
    ranges = [[int(end, 16) for end in part.split("-")] for part in code_points.split()]
    characters = [chr(i) for first, last in ranges for i in range(first, last + 1)]
    # An accent is too small to see at 28 x 28. Canonical decompositions (é) have no <tag>, others (a medial form) have.
    return [
        c
        for c in characters
        if unicodedata.category(c)[0] in "LNS" and unicodedata.decomposition(c).partition(" ")[1:] in (("", ""),)
    ]
