"""The estimator: a trained classifier, with scikit-learn's protocol."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from metalstm import backbones, checkpoint, recipes
from metalstm.backbones import Backbone, Input
from metalstm.classifier import files
from metalstm.classifier.choosing import AUTO, check_head, check_same, on_features
from metalstm.classifier.cross_validation import CrossValidation, Estimate, cross_validate, learning_curve
from metalstm.classifier.inputs import (
    Embed,
    Examples,
    Pixels,
    Read,
    Task,
    as_classes,
    as_labels,
    as_list,
    names,
    one_for_each,
    read_batches,
    read_images,
)
from metalstm.classifier.meta_learner import MetaLearner, choose
from metalstm.classifier.network import Network
from metalstm.errors import SKIP_BAD, Problems, UserError, unknown
from metalstm.geometry import Cropped
from metalstm.heads import HEADS
from metalstm.images import Preprocessing
from metalstm.methods import Adapted, Method
from metalstm.methods.base import score
from metalstm.settings import changed, check_seed, from_dict

PARAMETERS = ("checkpoint", "seed", "device", "skip_bad", "framing", "backbone", "head")


class InnerStep(NamedTuple):
    """The state of the inner loop after a step; gates are those of a Meta-LSTM, a mean for each layer."""

    number: int  # 1 .. of
    of: int
    loss: float  # of the support set after the step, in nats
    accuracy: float  # the same, in 0..1
    forget: dict[str, float]  # how much of the old parameters is kept
    rate: dict[str, float]  # how far the gradient is followed


class Predictions(NamedTuple):
    """What is predicted of files."""

    files: list[Any]  # those that could be read, as they were given
    probabilities: Float[np.ndarray, "n n_classes"]
    scores: Float[np.ndarray, " n"] | None  # as `known_scores`; None without a calibration
    faults: list[str]  # what is wrong with each of the other files


class NotFitted(UserError, AttributeError):
    """A classifier that has learned nothing yet was asked for something. `hasattr` takes it for a missing attribute."""


class Classifier:
    """A trained classifier: a method, what it learned from the support set, class names and preprocessing.

    It follows scikit-learn's protocol, and works in its `clone`, `cross_val_score` and `Pipeline`.

    Args:
        checkpoint: The meta-learner: a shipped checkpoint's name, a run folder or a file. None takes a shipped one by
            the kind of the images (drawings or photos) and their number.
        seed: Of the order in which the images are learned from.
        device: Where to compute.
        skip_bad: Learn without the images that cannot be read; by default they are an error.
        framing: How an image that is not square becomes one: `crop`, `letterbox` or `squeeze`, as
            `metalstm.geometry.framed` says. None is `crop` for photos and `letterbox` for drawings.
        backbone: A frozen network instead of a checkpoint, as `metalstm.backbones.load` takes it: an ONNX file, or the
            network of a checkpoint.
        head: What learns from the backbone's features: one of `metalstm.heads.HEADS`, or `auto`, which takes the best
            by cross-validation. One of `HEADS` without a backbone learns from the features of the checkpoint's network.

    Attributes:
        classes_: The labels, sorted.
        left_out_: What is wrong with each image that was left out.
        checkpoint_: The meta-learner that was taken.
        method: The method that adapted.
        network: The trained network: from pixels to probabilities.
        preprocessing: What is done to an image.
        meta: All plain values that `save` writes: configuration of the meta-learner, its accuracy on meta-val,
            license of its data, classes, numbers of images, calibration.
    """

    classes_: np.ndarray
    left_out_: list[str]
    checkpoint_: str
    method: Method
    network: Network
    preprocessing: Preprocessing
    meta: dict[str, Any]

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        skip_bad: bool = False,
        framing: str | None = None,
        backbone: str | Path | None = None,
        head: str = "auto",
    ):
        self.checkpoint, self.seed, self.device, self.skip_bad = checkpoint, seed, device, skip_bad
        self.framing, self.backbone, self.head = framing, backbone, head
        self._examples: Examples | None = None
        self._learner: MetaLearner | None = None
        self._backbone: Backbone | None = None

    def fit(self, images: Any, labels: Any) -> "Classifier":
        """Learn from labeled images.

        Args:
            images: Paths, PIL images, arrays (height, width) or (height, width, channels), tensors (channels, height,
                width), or one array or tensor of all; bytes, or floats in 0..1. `metalstm.geometry.Cropped` takes a
                part of one.
            labels: One for each image, strings or integers. Images of smaller classes are repeated until all classes
                have as many.

        Raises:
            UserError: Images cannot be read; labels do not fit them; there are fewer than 2 classes or too many; the
                framing is unknown.
        """
        self.left_out_ = []
        self._learn(*self._examples_of(images, labels))
        return self

    def steps(self, images: Any, labels: Any) -> Iterator[InnerStep]:
        """`fit`, to be watched: yields after each inner step, and has learned once it is exhausted.

        A method without an inner loop yields nothing.

        Raises:
            UserError: As `fit`.
        """
        self.left_out_ = []
        learner, examples = self._examples_of(images, labels)
        task = learner.task(examples.pixels, examples.labels, self.seed)
        method, support, adapted = learner.remembering, task.support, None
        for number, watched in enumerate(method.watch(support), 1):
            adapted = watched.adapted
            with torch.no_grad():
                loss, accuracy = score(method.logits(adapted, support.x), support.y)
            forget = {layer: f for layer, (f, _) in watched.gates.items()}
            rate = {layer: i for layer, (_, i) in watched.gates.items()}
            yield InnerStep(number, method.n_steps(support), loss.item(), accuracy.item(), forget, rate)
        self._finish(learner, examples, task, method.adapt(support) if adapted is None else adapted)

    def estimate(self, images: Any = None, labels: Any = None) -> Estimate:
        """The accuracy that `fit` on these images would give, by stratified cross-validation in at most 5 folds.

        Args:
            images: As for `fit`; by default, those that `fit` has learned from.
            labels: One for each image.

        Raises:
            UserError: No class has two images; or as `fit`.
        """
        return self.cross_validate(images, labels).estimate

    def cross_validate(self, images: Any = None, labels: Any = None) -> CrossValidation:
        """What `estimate` counts: the answers of classifiers that have not seen an image, for each image.

        Raises:
            UserError: As `estimate`.
        """
        return cross_validate(*self._known(images, labels), self.seed)

    def learning_curve(self, images: Any = None, labels: Any = None) -> dict[int, Estimate]:
        """`estimate` with 1, 2, 4 ... images of a class to learn from.

        Raises:
            UserError: As `estimate`.
        """
        return learning_curve(*self._known(images, labels), self.seed)

    def predict(self, images: Any, crops: int = 1) -> np.ndarray:
        """The most probable class of each image.

        Args:
            images: As for `fit`.
            crops: As for `predict_proba`.

        Raises:
            UserError: As `predict_proba`.
        """
        return self.classes_[self.predict_proba(images, crops).argmax(1)]

    def predict_proba(self, images: Any, crops: int = 1) -> Float[np.ndarray, "n n_classes"]:
        """Calibrated probabilities of the classes, in the order of `classes_`.

        Args:
            images: As for `fit`.
            crops: Look at so many squares of an image, in even steps along its longer side, and take the mean of their
                probabilities. At most 25; more than 1 need the framing `crop`.

        Raises:
            UserError: Images cannot be read, or there cannot be so many crops.
        """
        return self.predict_with_scores(images, crops)[0]

    def predict_with_scores(self, images: Any, crops: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """`predict_proba`, and `known_scores` where there is a calibration, at the cost of one of them.

        Args:
            images: As for `fit`.
            crops: As for `predict_proba`. The score of an image is the mean over its crops, too.

        Raises:
            UserError: As `predict_proba`.
        """
        self.preprocessing.check_crops(crops)
        probabilities, *scores = self._answers(self._pixels(images, crops), crops)
        return probabilities, scores[0] if scores else None

    def predict_files(self, paths: Sequence[Path]) -> tuple[list[Path], Float[np.ndarray, "n n_classes"], list[str]]:
        """`predict_proba` of many files, some of which may be broken.

        Returns:
            The files that could be read, their probabilities, and what is wrong with each of the others.
        """
        files, probabilities, _, faults = self.predict_files_with_scores(paths)
        return files, probabilities, faults

    def predict_files_with_scores(self, paths: Sequence[Path | Cropped], crops: int = 1) -> Predictions:
        """`predict_with_scores` of many files, some of which may be broken.

        Raises:
            UserError: There cannot be so many crops.
        """
        self.preprocessing.check_crops(crops)
        good, faults, parts = [], [], [self._no_answers()]
        for batch in read_batches(paths, self.preprocessing, "predicting", crops, self._embed()):
            good += [paths[number] for number in batch.good]
            faults += batch.faults
            parts.append(self._answers(batch.pixels, crops))
        answers = [np.concatenate(each) for each in zip(*parts, strict=True)]
        return Predictions(good, answers[0], answers[1] if len(answers) > 1 else None, faults)

    def probabilities(self, pixels: Pixels) -> Float[np.ndarray, "n n_classes"]:
        """`predict_proba` of pixels that `preprocessing` made."""
        return self._answers(pixels)[0]

    def known(self, images: Any) -> Bool[np.ndarray, " n"]:
        """Whether an image belongs to one of the classes at all, rather than to "none of these".

        Raises:
            UserError: Images cannot be read, or the meta-learner has no calibration.
        """
        return self.known_scores(images) >= self.threshold()

    def known_scores(self, images: Any) -> Float[np.ndarray, " n"]:
        """How near each image is to one of the classes: the score that `known` compares with `threshold`.

        Raises:
            UserError: Images cannot be read, or the meta-learner has no calibration.
        """
        self.threshold()
        return self._answers(self._pixels(images))[1]

    def threshold(self) -> float:
        """The score below which the answer is "none of these".

        Raises:
            UserError: The meta-learner has no calibration.
        """
        if self.network.references:
            return float(self.meta["calibration"]["threshold"])
        if self.meta.get("backbone"):
            raise UserError(
                "this classifier has one image of each class, so it cannot answer 'none of these': give more"
            )
        if self.meta["calibration"]:
            raise UserError(
                "this classifier, or its meta-learner, was made by an older version, whose calibration is no longer "
                "used: adapt anew with a shipped checkpoint to get 'none of these'"
            )
        raise UserError(
            f"{self.meta['checkpoint']} has no calibration, so its classifiers cannot answer 'none of these': "
            f"adapt with a shipped checkpoint: {', '.join(checkpoint.shipped())}"
        )

    def score(self, images: Any, labels: Any) -> float:
        """The share of images that are classified correctly, in 0..1.

        Raises:
            UserError: Images cannot be read, or there is not one label for each of them.
        """
        images = as_list(images)
        return float(np.mean(self.predict(images) == one_for_each(labels, len(images))))

    def add(self, images: Any, labels: Any) -> "Classifier":
        """Learn anew from the images that were learned from and these, of the same classes or new ones.

        The result is that of `fit` on all at once, the old ones first, with the same meta-learner and seed.

        Raises:
            UserError: It does not have the images that it learned from; the meta-learner is another one now; or as
                `fit`.
        """
        old = self._examples
        if old is None:
            raise UserError("this classifier does not keep its images: adapt to all of them anew, with --keep-images")
        embed = self._embed()
        learner = None if embed else MetaLearner.load(self.checkpoint_, self.device, self.preprocessing.framing)
        if learner and learner.meta["checkpoint_sha256"] != self.meta["checkpoint_sha256"]:
            raise UserError(
                f"{self.checkpoint_} is another checkpoint than the one that made this classifier: adapt anew"
            )
        self.left_out_ = []
        images = as_list(images)
        labels = one_for_each(labels, len(images))
        read, named = self._read(self.preprocessing, images, embed), names(images)
        both = np.concatenate([old.labels.astype(object), labels[read.good].astype(object)])
        everything = np.concatenate([old.pixels, read.pixels])
        all_names = old.names + [named[number] for number in read.good]
        examples = Examples(everything, as_labels(both, len(both)), all_names)
        self._learn(learner or self._with_head(examples), examples)
        return self

    def save(self, path: str | Path, keep_images: bool = False) -> None:
        """Write the classifier to one safetensors file, which `load` reads.

        Args:
            path: The file.
            keep_images: Keep the images that it learned from, as small as the network sees them, so that `add` can add
                more. Whoever has the file can look at them.
        """
        files.save(Path(path), self.network, self.meta, self._examples if keep_images else None)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", backbone: str | Path | None = None) -> "Classifier":
        """Read what `save` wrote; executes nothing.

        Args:
            path: The file.
            device: Where to compute.
            backbone: The file of the backbone, if it is no longer where it was. It is read when images are.

        Raises:
            UserError: The file is missing, damaged, or not a classifier.
        """
        network, meta, kept = files.load(Path(path), device)
        framing, facts = network.preprocessing.framing, meta.get("backbone")
        if facts:
            source = backbone or meta["checkpoint"]
            self = cls(None, meta["seed"], device, framing=framing, backbone=source, head=facts["asked"])
        elif backbone:
            raise UserError(f"{path} is a classifier without a backbone: leave out --backbone {backbone}")
        else:
            self = cls(meta["checkpoint"], meta["seed"], device, framing=framing)
        self._examples, self.left_out_ = kept, []
        self._set(network, meta, as_classes(meta["classes"]))
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

    def __getattr__(self, name: str) -> Any:  # of what is not there
        if name in Classifier.__annotations__:
            raise NotFitted("this classifier has learned nothing yet: call fit first, or Classifier.load")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Classifier({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def _learn(self, learner: MetaLearner, examples: Examples) -> None:
        task = learner.task(examples.pixels, examples.labels, self.seed)
        self._finish(learner, examples, task, learner.remembering.adapt(task.support))

    def _known(self, images: Any, labels: Any) -> tuple[MetaLearner, Examples]:
        """The meta-learner and the pixels of some images, or of those that were learned from."""
        if images is not None:
            self.left_out_ = []
            return self._examples_of(images, labels)
        if self._examples is None:
            raise NotFitted("which images? give some with their labels, or call fit first: a file does not hold them")
        return self._learner or self._again(), self._examples

    def _examples_of(self, images: Any, labels: Any) -> tuple[MetaLearner, Examples]:
        """The meta-learner for some images, and their pixels."""
        check_seed(self.seed)
        if self.backbone is not None or self.head != AUTO:
            return self._on_backbone(images, labels)
        images = as_list(images)
        labels, named = as_labels(labels, len(images)), names(images)
        while True:
            name = choose(images, labels) if self.checkpoint is None else self.checkpoint
            learner = MetaLearner.load(name, self.device, self.framing)
            read = self._read(learner.preprocessing, images)
            if not read.faults:
                return learner, Examples(read.pixels, labels, named)
            # Again, as if the others had never been given.
            images, named = ([each[number] for number in read.good] for each in (images, named))
            labels = as_labels(labels[read.good], len(images))

    def _on_backbone(self, images: Any, labels: Any) -> tuple[MetaLearner, Examples]:
        """As `_examples_of`, with features instead of pixels."""
        if self.checkpoint is not None and self.backbone is not None:
            raise UserError("a checkpoint and a backbone: give one of them, --checkpoint or --backbone")
        check_head(self.head)
        images = as_list(images)
        labels = as_labels(labels, len(images))
        given = self.checkpoint if self.backbone is None else self.backbone
        self._backbone = backbones.load(choose(images, labels) if given is None else given, self.device)
        if self.framing is not None:
            self._backbone.preprocessing = changed(self._backbone.preprocessing, "framing", self.framing)
        read = self._read(self._backbone.preprocessing, images, partial(backbones.features, self._backbone))
        named, labels = names(images), as_labels(labels[read.good], len(read.good))
        examples = Examples(read.pixels, labels, [named[number] for number in read.good])
        return self._with_head(examples), examples

    def _with_head(self, examples: Examples) -> MetaLearner:
        """The meta-learner on the features of the backbone, which is loaded."""
        assert self._backbone
        return on_features(self._backbone, examples, self.head, self.seed, self.device)

    def _embed(self) -> Embed | None:
        """What makes features of pixels; None without a backbone.

        Raises:
            UserError: The backbone is missing, or another one than that which made the classifier.
        """
        return partial(backbones.features, self.frozen()) if self.meta.get("backbone") else None

    def frozen(self) -> Backbone:
        """The backbone of a classifier that has one.

        Raises:
            UserError: It is missing, or another one than that which made the classifier.
        """
        if self._backbone is None:
            kept = self.meta["backbone"].get("input")
            self._backbone = backbones.load(self.backbone, self.device, kept and from_dict(Input, kept))
        check_same(self._backbone, self.meta)
        self._backbone.preprocessing = self.preprocessing
        return self._backbone

    def _again(self) -> MetaLearner:
        """The meta-learner of a classifier that was loaded."""
        facts = self.meta.get("backbone")
        if not facts:
            return MetaLearner.load(self.checkpoint_, self.device, self.preprocessing.framing)
        method = HEADS[facts["head"]].build(recipes.from_dict(self.meta["config"]))
        return MetaLearner(method, self.preprocessing, (), None, self.meta, self.device)

    def _read(self, preprocessing: Preprocessing, images: list[Any], embed: Embed | None = None) -> Read:
        """The pixels of images; those that cannot be read are an error, or noted and left out.

        Raises:
            Problems: Images cannot be read.
        """
        read = read_images(images, preprocessing, embed=embed)
        if read.faults and not self.skip_bad:
            raise Problems("the images", read.faults, SKIP_BAD)
        self.left_out_ += read.faults
        return read

    def _finish(self, learner: MetaLearner, examples: Examples, task: Task, adapted: Adapted) -> None:
        references, threshold = learner.known(adapted, task) or (None, None)
        network = learner.network(adapted, task, references)
        self._set(network, learner.describe(task, self.seed, threshold), task.classes)
        self._examples, self._learner = examples, learner

    def _set(self, network: Network, meta: dict[str, Any], classes: np.ndarray) -> None:
        self.network, self.meta, self.classes_ = network, meta, classes
        self.method, self.preprocessing, self.checkpoint_ = network.method, network.preprocessing, meta["checkpoint"]

    def _pixels(self, images: Any, crops: int = 1) -> Pixels:
        """Raises: Problems: Images cannot be read."""
        read = read_images(as_list(images), self.preprocessing, crops, self._embed())
        if read.faults:
            raise Problems("the images", read.faults, "call predict_files, which goes on without")
        return read.pixels

    def _answers(self, pixels: Pixels, crops: int = 1) -> list[np.ndarray]:
        """What `Network.answers` gives, for any number of images; means over the crops of each."""
        answers = self.network.answers(pixels) if len(pixels) else self._no_answers()
        return [each.reshape(-1, crops, *each.shape[1:]).mean(1) for each in answers] if crops > 1 else answers

    def _no_answers(self) -> list[np.ndarray]:
        probabilities = np.empty((0, len(self.classes_)), np.float32)
        return [probabilities, probabilities[:, 0]] if self.network.references else [probabilities]
