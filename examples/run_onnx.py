"""Run a classifier that `metalstm export birds.safetensors` wrote, without metalstm.

pip install onnxruntime pillow
python run_onnx.py birds.onnx new/*.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path, size, channels, fit):
    """An image as the network takes it: uint8 (size, size, channels)."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
    if fit == "crop":  # a photo
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    else:  # a drawing, which gets more paper instead of being cropped
        pixels = np.asarray(image := ImageOps.autocontrast(image))
        paper = int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
        image = center_ink(image, paper) if fit == "center" else image
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=paper)
    return np.asarray(image).reshape(size, size, channels)


def center_ink(image, paper):
    """A drawing with the center of mass of its ink in the middle."""
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


if len(sys.argv) < 3:
    sys.exit(__doc__)
model, *paths = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
metadata = session.get_modelmeta().custom_metadata_map
classes, size, channels = (json.loads(metadata[name]) for name in ("classes", "image_size", "channels"))
images = np.stack([read(path, size, channels, metadata["fit"]) for path in paths])
probabilities, *scores = map(np.asarray, session.run(None, {"images": images}))
threshold = json.loads(metadata["threshold"])
doubts = scores[0] < threshold if scores else [False] * len(paths)
for path, row, doubt in zip(paths, probabilities, doubts, strict=True):
    print(f"{path}\t{classes[row.argmax()]}\t{row.max():.3f}" + "\tperhaps none of these" * bool(doubt))
