"""`Classifier` from Python: images, labels and arguments of every type, shape and number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hostile.checkpoints import IMAGES, LABELS, meta_sets, small
from hostile.mutations import VALUES, Random
from metalstm import checkpoint, recipes
from metalstm.classifier import Classifier

DTYPES = ["u1", "?", "i1", "i8", "u2", "f2", "f4", "f8", "c8", "O", "U3", "S3", "M8[s]", "m8[s]", "V4", "u1,u1"]
SHAPES = [(), (0,), (1,), (6,), (6, 16), (16, 16), (16, 0), (6, 16, 16), (16, 16, 1), (16, 16, 3), (16, 16, 4), (3,
    16, 16),
          (6, 16, 16, 1), (6, 16, 16, 3), (6, 3, 16, 16), (6, 1, 1, 1), (6, 16, 16, 5), (1, 2, 3, 4, 5), (6, 0, 16,
          3), (6, 3000, 1)]  # fmt: skip
ODD = [None, b"", "", "no file", Path("/etc/passwd"), Path("/"), "a\0b", "x" * 2000, object(), {}, {"a": 1}, {1, 2},
    0, 1.5,
       float("nan"), 10**400, [], [[]], [None], (), "\ud800", range(6), np.nan, Ellipsis, int, print, 2j, slice(3),
       np.str_("a"), np.bool_(True), np.datetime64("2020"), np.ma.masked, memoryview(b"abc"), bytearray(9)]  # fmt: skip


class Cases:
    """Calls with odd arguments.

    Args:
        folder: Where checkpoint and classifiers lie.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, config = folder, folder / "small.safetensors", small("protonet", meta_sets())
        checkpoint.save(
            self.path, checkpoint.method_tensors(recipes.build(config)), {"config": recipes.to_dict(config)}
        )

    def __call__(self, random: Random, number: int) -> None:
        arguments = {"checkpoint": self.path, "seed": 0, "device": "cpu"}
        if random.rand() < 0.2:
            arguments[str(random.choice(list(arguments)))] = self._any(random)
        classifier = Classifier().set_params(**arguments)
        repr(classifier)
        if random.rand() < 0.05:
            classifier.predict(IMAGES)
        images = self._images(random) if random.rand() < 0.6 else IMAGES
        labels = self._labels(random) if random.rand() < 0.6 else LABELS
        if random.rand() < 0.1:
            float(classifier.estimate(images, labels).accuracy)
            return
        if random.rand() < 0.1:
            list(classifier.steps(images, labels))
        classifier.fit(images, labels)
        path = [self.folder / "c.safetensors", self.folder, "/dev/null", "/dev/full", "missing/c"][
            random.randint(5) % 9
        ]
        if random.rand() < 0.2:
            classifier.save(path)
            classifier = Classifier.load(path, str(random.choice(["cpu", "cuda:7", "meta", "x", "cpu:1"])))
        answer = classifier.predict_proba(self._images(random) if random.rand() < 0.5 else IMAGES)
        json.dumps(answer.tolist(), allow_nan=False)
        assert answer.shape[1] == len(classifier.classes_)
        assert set(classifier.classes_.tolist()) <= set(np.asarray(labels, object).tolist()), (
            "labels as they were given"
        )
        if random.rand() < 0.2:
            classifier.score(IMAGES, self._labels(random))

    def _any(self, random: Random) -> Any:
        odd = [*ODD, *VALUES]
        return odd[random.randint(len(odd))] if random.rand() < 0.6 else self._array(random)

    def _array(self, random: Random) -> Any:
        shape = SHAPES[random.randint(len(SHAPES))]
        kind = np.dtype(DTYPES[random.randint(len(DTYPES))] if random.rand() < 0.6 else "u1")
        if kind.kind in "fc":
            array = np.asarray(random.rand(*shape)).astype(kind)
        else:
            n_bytes = kind.itemsize * int(np.prod(shape))
            array = np.frombuffer(random.bytes(n_bytes), kind if kind.kind != "O" else "u8").reshape(shape).astype(kind)
        if array.size and kind.kind == "f" and random.rand() < 0.3:
            array.flat[0] = [np.nan, np.inf, -1, 2, 255][random.randint(5)]
        match random.randint(6):
            case 0:
                return list(array) if array.ndim else array
            case 1 if array.ndim:
                return array[::-1]
            case 2 if kind.kind in "uif?" and kind.itemsize:
                tensor = torch.from_numpy(np.ascontiguousarray(array).astype("f4" if kind == "u2" else kind))
                odd = [tensor, tensor.to(torch.bfloat16), tensor.to("meta"), tensor.float().requires_grad_(),
                       tensor.to_sparse() if tensor.ndim else tensor, tensor.bool()]  # fmt: skip
                return odd[random.randint(len(odd))]
            case 3:
                return np.ma.masked_array(array) if kind.kind != "V" else array
        return array

    def _images(self, random: Random) -> Any:
        match random.randint(4):
            case 0:
                return self._any(random)
            case 1:  # one of several
                return [*IMAGES[:-1], self._any(random)]
            case 2:
                mode = str(random.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "HSV", "LAB"]))
                size = [(1, 1), (16, 16), (300, 1), (0, 5)][random.randint(4)]
                return [Image.new(mode, size)] * 6
        return (image for image in IMAGES) if random.rand() < 0.3 else [self._array(random)] * 6

    def _labels(self, random: Random) -> Any:
        match random.randint(4):
            case 0:
                return self._any(random)
            case 1:
                return [*LABELS[:-1], self._any(random)]
            case 2:
                return [self._any(random), self._any(random)] * 3
        return np.array([0, 1, 2] * 2, str(random.choice(["u1", "f4", "U9", "S9", "O", "?", "c8", "M8[s]", "i8"])))
