"""What a user holds in the end: a network that a few labelled images made, with class names and preprocessing."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from metalstm import checkpoint, recipes
from metalstm.calibration import nearest
from metalstm.console import progress
from metalstm.datasets import GREY
from metalstm.episodes import Support
from metalstm.errors import UserError, unknown
from metalstm.images import JUDGED, Preprocessing, are_drawings, open_image
from metalstm.learners import layers, set_precision
from metalstm.methods import Adapted, GradientMethod, Method, Step, build
from metalstm.methods.base import score
from metalstm.optimizers import MetaLSTM

MAX_WAY = 20  # classes that meta-learners have been measured with
LOOK_AT = 20  # images by which their kind is judged
TOGETHER = 128  # images at a time; more are no faster
FOLDS = 5  # of the estimate, at the most
PARAMETERS = ("checkpoint", "seed", "device")


class InnerStep(NamedTuple):
    """What the inner loop has come to after a step; gates are those of a Meta-LSTM, a mean for each layer."""

    number: int  # 1 .. of
    of: int
    loss: float  # of the support set after the step, in nats
    accuracy: float  # the same, in 0..1
    forget: dict[str, float]  # how much of the old parameters is kept
    rate: dict[str, float]  # how far the gradient is followed


@dataclass(frozen=True)
class Estimate:
    """A cross-validated accuracy on the support set itself."""

    right: int
    images: int
    folds: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.accuracy:.0f} % (95 % interval {low:.0f} to {high:.0f} %), by {self.folds}-fold cross-validation "
            f"on {self.images} images"
        )

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval in percent (Wilson's), which holds for few images too."""
        z, n, p = 1.96, self.images, self.right / self.images
        center, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return 100 * (center - half) / (1 + z * z / n), 100 * (center + half) / (1 + z * z / n)


class Network(nn.Module):
    """From pixels to probabilities: the adapted method, with all that lies before and behind it.

    Args:
        method: What has adapted.
        adapted: What one task taught it.
        drawing: Whether light paper is to be turned into dark.
        temperature: By which logits are divided.
    """

    def __init__(self, method: Method, adapted: Adapted, drawing: bool, temperature: float):
        super().__init__()
        self.method, self.adapted = method, adapted
        self.drawing, self.temperature = drawing, temperature

    def forward(self, pixels: UInt8[Tensor, "n height width channels"]) -> Float[Tensor, "n n_way"]:
        """Probabilities of the classes."""
        logits = self.method.logits(self.adapted, to_x(pixels, self.drawing))
        return (logits / self.temperature).softmax(-1)


def to_x(pixels: UInt8[Tensor, "n height width channels"], drawing: bool) -> Float[Tensor, "n channels height width"]:
    """What a learner sees: values in 0..1, and of drawings the paper dark, as the border tells."""
    x = pixels.movedim(-1, -3).float()
    if drawing:
        border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
        x = torch.where(border.mean((-2, -1))[:, None, None, None] > 127.5, 255 - x, x)
    return x / 255


class Classifier:
    """A trained classifier: a method, what one task taught it, class names and preprocessing.

    It follows scikit-learn's protocol, and works in its `clone`, `cross_val_score` and `Pipeline`.

    Args:
        checkpoint: The meta-learner: a shipped checkpoint's name, a run folder or a file. None takes a shipped one by
            the kind of the images (drawings or photos) and their number.
        seed: Of the order in which the images are learned from.
        device: Where to compute.

    Attributes:
        classes_: The labels, sorted.
        checkpoint_: The meta-learner that was taken.
        preprocessing: What is done to an image.
        meta: All plain values that `save` writes: configuration of the meta-learner, its accuracy on meta-val,
            licence of its data, classes, numbers of images, calibration.
    """

    classes_: np.ndarray
    checkpoint_: str
    preprocessing: Preprocessing
    meta: dict[str, Any]

    def __init__(self, checkpoint: str | Path | None = None, seed: int = 0, device: str = "cpu"):
        self.checkpoint, self.seed, self.device = checkpoint, seed, device

    def fit(self, images: Any, labels: Any) -> "Classifier":
        """Learn from labelled images.

        Args:
            images: Paths, PIL images, arrays (height, width) or (height, width, channels), tensors (channels, height,
                width), or one array or tensor of all; bytes, or floats in 0..1.
            labels: One for each image, strings or integers. Images of smaller classes are repeated until all classes
                have as many.

        Raises:
            UserError: Images cannot be read; labels do not fit them; there are fewer than 2 classes or too many.
        """
        for _ in self._steps(images, labels):
            pass
        return self

    def steps(self, images: Any, labels: Any) -> Iterator[InnerStep]:
        """`fit`, to be watched: yields after each inner step, and has learned once it is exhausted.

        A method without an inner loop yields nothing.

        Raises:
            UserError: As `fit`.
        """
        for number, (step, support) in enumerate(self._steps(images, labels), 1):
            method = self.method
            assert isinstance(method, GradientMethod)
            forget, rate = {}, {}
            with torch.no_grad():
                loss, accuracy = score(method.logits(method.finish(step, support), support.x), support.y)
                if isinstance(method.optimizer, MetaLSTM):
                    gates = method.optimizer.gates(step.state)
                    for layer, place in layers(method.learner.layout(support.n_way)).items():
                        forget[layer], rate[layer] = gates[:, place].mean(-1).tolist()
            yield InnerStep(number, method.n_steps(support), loss.item(), accuracy.item(), forget, rate)

    def predict(self, images: Any) -> np.ndarray:
        """The most probable class of each image.

        Raises:
            UserError: Images cannot be read.
        """
        return self.classes_[self.predict_proba(images).argmax(1)]

    def predict_proba(self, images: Any) -> Float[np.ndarray, "n n_classes"]:
        """Calibrated probabilities of the classes, in the order of `classes_`.

        Raises:
            UserError: Images cannot be read.
        """
        return self.probabilities(self._pixels(_listed(images)))

    def known(self, images: Any) -> Bool[np.ndarray, " n"]:
        """Whether an image is taken for one of the classes at all, rather than for "none of these".

        Raises:
            UserError: Images cannot be read, or the meta-learner has no calibration.
        """
        return self.are_known(self.predict_proba(images))

    def score(self, images: Any, labels: Any) -> float:
        """The share of images that are classified rightly, in 0..1."""
        return float(np.mean(self.predict(images) == np.asarray(labels)))

    def estimate(self, images: Any, labels: Any) -> Estimate:
        """The accuracy that `fit` on these images would give, by stratified cross-validation in at most 5 folds.

        Raises:
            UserError: A class has one image only; or as `fit`.
        """
        images, labels = _listed(images), np.asarray(labels)
        classes, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if counts.min() < 2:
            raise UserError(
                f"an estimate of the accuracy needs 2 images per class, but {classes[counts.argmin()]} has 1"
            )
        folds = min(FOLDS, int(counts.min()))
        learner = Classifier(self.checkpoint, self.seed, self.device)
        learner._choose(images, labels)
        pixels = learner._pixels(images)
        fold = np.empty(len(y), int)
        rng = np.random.RandomState(self.seed)
        for k, count in enumerate(counts):
            fold[y == k] = rng.permutation(count) % folds
        right = 0
        for k in range(folds):
            deque(learner._learn(pixels[fold != k], labels[fold != k]), maxlen=0)
            guesses = learner.probabilities(pixels[fold == k]).argmax(1)
            right += int((guesses == y[fold == k]).sum())
        return Estimate(right, len(y), folds)

    @torch.no_grad()
    def probabilities(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_classes"]:
        """`predict_proba` of images that `preprocessing` has made pixels of."""
        parts = [self.network(part) for part in torch.from_numpy(pixels).to(self.device).split(TOGETHER) if len(part)]
        return torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(self.classes_)), np.float32)

    def predict_files(self, paths: Sequence[Path]) -> tuple[list[Path], Float[np.ndarray, "n n_classes"], list[str]]:
        """`predict_proba` of many files, some of which may be broken.

        Returns:
            The files that could be read, their probabilities, and what is wrong with each of the others.
        """

        def read(path: Path) -> np.ndarray | UserError:
            try:
                return self.preprocessing(path)
            except UserError as error:
                return error

        good, parts, faults = [], [self.probabilities(self._pixels([]))], []
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress() as bar:
            task = bar.add_task("predicting", total=len(paths))
            for start in range(0, len(paths), TOGETHER):
                chunk = paths[start : start + TOGETHER]
                results = list(zip(chunk, pool.map(read, chunk), strict=True))
                good += [path for path, result in results if not isinstance(result, UserError)]
                faults += [str(result) for _, result in results if isinstance(result, UserError)]
                pixels = [result for _, result in results if not isinstance(result, UserError)]
                if pixels:
                    parts.append(self.probabilities(np.stack(pixels)))
                bar.advance(task, len(chunk))
        return good, np.concatenate(parts), faults

    def are_known(self, probabilities: Float[np.ndarray, "n n_classes"]) -> Bool[np.ndarray, " n"]:
        """`known` of images with these probabilities.

        Raises:
            UserError: The meta-learner has no calibration.
        """
        return probabilities.max(1) >= self.threshold()

    def threshold(self) -> float:
        """The probability below which an image is taken for "none of these".

        Raises:
            UserError: The meta-learner has no calibration.
        """
        calibration = self.meta["calibration"]
        if calibration is None:
            raise UserError(
                f"{self.meta['checkpoint']} has no calibration, so that what it made cannot tell 'none of these': "
                f"adapt with a shipped checkpoint: {', '.join(checkpoint.shipped())}"
            )
        return calibration["threshold"]

    def save(self, path: str | Path) -> None:
        """Write the classifier to one safetensors file, from which `load` makes it again."""
        state = self.method.state_dict()
        kept = {f"method.{name}": tensor for name, tensor in state.items() if not is_spent(name)}
        adapted = {f"adapted.{name}": tensor for name, tensor in self.network.adapted.items()}
        checkpoint.save(Path(path), kept | adapted, self.meta)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Classifier":
        """Read what `save` wrote; executes nothing.

        Raises:
            UserError: The file is missing, damaged, or not a classifier.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a file that metalstm adapt has written")
        tensors, meta = checkpoint.load(path)
        if not isinstance(meta, dict) or "classes" not in meta:
            raise UserError(
                f"{path} is a meta-learner, not a classifier: metalstm adapt makes one, with --checkpoint {path}"
            )
        try:
            self = cls(meta["checkpoint"], meta["seed"], device)
            self.checkpoint_, self.meta = meta["checkpoint"], meta
            config = recipes.RunConfig.from_dict(meta["config"])
            self._set(build(config), config)
            self.preprocessing = Preprocessing(**meta["preprocessing"])
            self.classes_ = np.array(meta["classes"])
            self.method.load_state_dict(_part(tensors, "method."), strict=False)
            self._finish(_part(tensors, "adapted."))
            channels, size = self.preprocessing.channels, self.preprocessing.image_size
            answer = self.probabilities(np.zeros((1, size, size, channels), np.uint8))
            if answer.shape != (1, len(self.classes_)):
                raise ValueError(f"{answer.shape[1]} outputs for {len(self.classes_)} classes")
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, UserError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} does not fit this version of metalstm ({reason}): adapt it anew") from error
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, for scikit-learn."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> "Classifier":
        """Change arguments of the constructor.

        Raises:
            UserError: A name is unknown.
        """
        for name, value in params.items():
            if name not in PARAMETERS:
                raise unknown("parameter", name, PARAMETERS)
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network")

    def __repr__(self) -> str:
        return f"Classifier({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    # What `fit`, `steps` and `estimate` are made of.

    def _steps(self, images: Any, labels: Any) -> Iterator[tuple[Step, Support]]:
        """The inner loop's steps, with the support set; leaves the classifier fitted."""
        images, labels = _listed(images), np.asarray(labels)
        if labels.shape != (len(images),):
            raise UserError(f"{len(images)} images, but labels of shape {labels.shape}: give one label for each image")
        self._choose(images, labels)
        yield from self._learn(self._pixels(images), labels)

    def _choose(self, images: Sequence[Any], labels: np.ndarray) -> None:
        """Load the meta-learner."""
        name = self.checkpoint
        if name is None:
            few = np.linspace(0, len(images) - 1, min(LOOK_AT, len(images))).astype(int)
            drawings = are_drawings([open_image(images[k], 2 * JUDGED, f"image {k + 1}") for k in few])
            name = nearest_shipped(drawings, len(labels) / len(np.unique(labels)))
        path = checkpoint.find(name)
        method, config, meta = checkpoint.load_method(path)
        self._set(method, config)
        self.checkpoint_ = str(name)
        self._calibrations = meta.get("calibration", [])
        self.meta = {"checkpoint": self.checkpoint_, "checkpoint_sha256": checkpoint.sha256(path)}
        self.meta |= {"config": meta["config"], "meta_val": meta.get("meta_val")}

    def _set(self, method: Method, config: recipes.RunConfig) -> None:
        set_precision(method, bf16=False)  # a handful of images takes no time
        self.method, self._config = method.eval().to(self.device), config
        channels, size, _ = config.image_shape
        self.preprocessing = Preprocessing(size, channels, config.data in GREY)

    def _pixels(self, images: Sequence[Any]) -> UInt8[np.ndarray, "n height width channels"]:
        """All images, or a complaint about all that cannot be read."""
        pixels, faults = [], []
        for number, image in enumerate(images, 1):
            try:
                pixels.append(self.preprocessing(image, f"image {number}"))
            except UserError as error:
                faults.append(str(error))
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise UserError("; ".join(faults[:3]) + more)
        size = self.preprocessing.image_size
        return np.stack(pixels) if pixels else np.empty((0, size, size, self.preprocessing.channels), np.uint8)

    def _learn(
        self, pixels: UInt8[np.ndarray, "n height width channels"], labels: np.ndarray
    ) -> Iterator[tuple[Step, Support]]:
        classes, y = np.unique(labels, return_inverse=True)
        n_way, counts = len(classes), np.bincount(y)
        if not 2 <= n_way <= MAX_WAY:
            raise UserError(f"{n_way} {'class' if n_way == 1 else 'classes'}: give 2 to {MAX_WAY}")
        rows = np.concatenate([np.resize(np.flatnonzero(y == k), counts.max()) for k in range(n_way)])
        rows = rows[np.random.RandomState(self.seed).permutation(len(rows))]
        x = to_x(torch.from_numpy(pixels[rows]).to(self.device), self.preprocessing.drawing)
        support = Support(x, torch.from_numpy(y[rows]).to(self.device), n_way)
        method = self.method
        if isinstance(method, GradientMethod):
            if isinstance(self._config.settings, recipes.MetaLSTMSettings):
                method.epochs = recipes.epochs(self._config, int(counts.max()))
            last, steps = method.start(support), method.trajectory(support)
            while step := _next(steps):
                yield step, support
                last = step
            with torch.no_grad():
                adapted = method.finish(last, support)
        else:
            adapted = method.adapt(support)
        self.classes_ = classes
        entry = nearest(self._calibrations, n_way, counts.mean()) if self._calibrations else None
        self.meta |= {"classes": classes.tolist(), "images": counts.tolist(), "seed": self.seed}
        self.meta |= {"preprocessing": asdict(self.preprocessing), "calibration": entry}
        self._finish(adapted)

    def _finish(self, adapted: Adapted) -> None:
        calibration = self.meta["calibration"]
        temperature = calibration["temperature"] if calibration else 1.0
        adapted = {name: tensor.to(self.device) for name, tensor in adapted.items()}
        self.network = Network(self.method, adapted, self.preprocessing.drawing, temperature)
        self.network.eval().requires_grad_(False)


@torch.no_grad()
def _next(steps: Iterator[Step]) -> Step | None:
    """The next step, without a graph: between steps a generator leaves that to whoever reads it."""
    return next(steps, None)


def is_spent(name: str) -> bool:
    """Whether a method needs its tensor of this name no longer once it has adapted: theta_0 and what changes it."""
    return name.removeprefix("head.").startswith(("body_0", "head_0", "moments_0", "optimizer."))


def nearest_shipped(drawings: bool, n_shot: float) -> str:
    """The shipped checkpoint for drawings or photos whose number of images a class is nearest, in ratio."""
    kinds = {}
    for name, path in checkpoint.shipped().items():
        config = checkpoint.load(path)[1]["config"]
        if (config["data"] in GREY) == drawings:
            kinds[name] = abs(log(config["n_shot"] / n_shot))
    return min(kinds, key=kinds.__getitem__)


def _listed(images: Any) -> list[Any]:
    """Images that can be counted and picked.

    Raises:
        UserError: It is one image, not several.
    """
    is_one = isinstance(images, str) or not hasattr(images, "__iter__")
    if is_one or (isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (1, 3, 4)):
        raise UserError("one image where several are asked for: give a list, [image]")
    return list(images)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
