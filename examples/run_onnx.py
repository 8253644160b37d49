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
        paper = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=int(paper))
    return np.asarray(image).reshape(size, size, channels)


if len(sys.argv) < 3:
    sys.exit(__doc__)
model, *paths = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
metadata = session.get_modelmeta().custom_metadata_map
classes, size, channels = (json.loads(metadata[name]) for name in ("classes", "image_size", "channels"))
images = np.stack([read(path, size, channels, metadata["fit"]) for path in paths])
probabilities = np.asarray(session.run(["probabilities"], {"images": images})[0])
for path, row in zip(paths, probabilities, strict=True):
    print(f"{path}\t{classes[row.argmax()]}\t{row.max():.3f}")
