"""Run a classifier that `metalstm export birds.safetensors` wrote, without metalstm.

pip install onnxruntime pillow
python run_onnx.py birds.onnx new/*.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path, about):
    """An image as the network takes it: uint8 (size, size, channels)."""
    size = about["image_size"]
    image = upright(Image.open(path), 2 * size)
    image = image.convert("L" if about["channels"] == 1 else "RGB")
    if about["drawing"]:
        image = ImageOps.autocontrast(image)
        image = center_ink(image) if about["centered"] else image
    if about["framing"] == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    elif about["framing"] == "letterbox":  # bars, of a drawing more paper
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=border_color(image))
    else:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, -1)


def upright(image, least):
    """An image as its camera was held, with 8 bits, on white where it is transparent."""
    if image.mode in ("I", "F"):
        sys.exit(f"{image.filename} has 32 bits: save it with 8 or 16")
    image.draft(None, (least, least))  # a large JPEG is decoded at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def border_color(image):
    """The median of the border, a number for each channel."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median = np.median(border, axis=0).astype(int).tolist()
    return tuple(median) if isinstance(median, list) else median


def center_ink(image):
    """A drawing with the center of mass of its ink in the middle."""
    paper = border_color(image)
    ink = np.abs(np.asarray(image).astype(int) - paper)
    ink[ink < 64] = 0
    if not ink.any():
        return image
    lines = ink.sum(0), ink.sum(1)
    middle = [np.average(np.arange(len(line)) + 0.5, weights=line) for line in lines]
    reach = max(abs(np.flatnonzero(line)[[0, -1]] + (0, 1) - at).max() for line, at in zip(lines, middle, strict=True))
    side = max(*image.size, int(np.ceil(2 * reach)) + 1)
    square = Image.new("L", (side, side), paper)
    left, top = (round(side / 2 - at) for at in middle)
    square.paste(image, (left, top))
    return square


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, *paths = sys.argv[1:]
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    names = ("classes", "image_size", "channels", "drawing", "centered", "threshold")
    about = {name: json.loads(metadata[name]) for name in names} | {"framing": metadata["framing"]}
    images = np.stack([read(path, about) for path in paths])
    probabilities, *scores = map(np.asarray, session.run(None, {"images": images}))
    doubts = scores[0] < about["threshold"] if scores else [False] * len(paths)
    for path, row, doubt in zip(paths, probabilities, doubts, strict=True):
        print(f"{path}\t{about['classes'][row.argmax()]}\t{row.max():.3f}" + "\tperhaps none of these" * bool(doubt))
