"""The answers of a classifier as HTML."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from metalstm.app.templates import render

N_CLASSES, N_CLASSES_OF_MANY = 10, 3  # shown for a single image, for each of several
NO_ANSWER = '<p class="note">Once it has learned, draw something new or drop images.</p>'


def answers(
    images: Sequence[Mapping[str, str]],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n_images n_classes"],
    doubtful: Sequence[bool] | np.ndarray,
) -> str:
    """The most probable classes of each image, in the order of the images, as HTML.

    Args:
        images: As the cards have them.
        classes: The names of the classes.
        probabilities: Of each image and class.
        doubtful: Whether an image may be of none of the classes.
    """
    shown = N_CLASSES if len(images) == 1 else N_CLASSES_OF_MANY
    entries = [
        {
            "kind": "photo" if "path" in image else "drawing",
            "url": image["url"],
            "classes": [(classes[k], 100 * p[k]) for k in (-p).argsort()[:shown]],
            "doubtful": is_doubtful,
        }
        for image, p, is_doubtful in zip(images, probabilities, doubtful, strict=True)
    ]
    return render("answers.html", answers=entries)
