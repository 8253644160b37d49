"""What is in a folder of images: how many of each class, which cannot be read, and which are the same picture."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metalstm.console import track
from metalstm.data.base import SPLITS
from metalstm.data.duplicates import identical, near
from metalstm.data.folder import class_folders, labeled_files, split_classes
from metalstm.errors import UserError
from metalstm.images import read_image

SIZE = 32  # pixels: height and width at which images are compared


@dataclass
class Survey:
    """What is in a folder.

    Attributes:
        counts: How many images of each class can be read.
        splits: The split of each class that has one.
        problems: What is wrong with classes and images.
        others: Visible files that are no images by their names.
        identical: Images that are the same at 32x32 pixels, in groups.
        near: Pairs of images that are nearly the same, as `metalstm.data.duplicates.near` finds them.
    """

    counts: dict[str, int]
    splits: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    identical: list[list[Path]] = field(default_factory=list)
    near: list[list[Path]] = field(default_factory=list)

    def where(self, images: list[Path]) -> str:
        """Where some images are that show the same: within a class, across classes, or across splits."""
        classes = {path.parent.name for path in images}
        if len({self.splits.get(name, "") for name in classes} - {""}) > 1:
            return "across splits"
        return "across classes" if len(classes) > 1 else "within a class"


def survey(directory: Path) -> Survey:
    """Read all images of a folder of class folders.

    Raises:
        UserError: There is no such folder, or it has no classes.
    """
    classes = class_folders(directory)
    listing = labeled_files(directory, classes)
    found = Survey(dict.fromkeys(classes, 0), problems=list(listing.problems), others=listing.others)
    if len(classes) >= len(SPLITS):  # fewer are enough to adapt to
        try:
            members = split_classes(directory, classes)
            found.splits = {label: split for split, labels in members.items() for label in labels}
        except UserError as error:
            found.problems.append(str(error))
    paths, pixels = [], []
    for label, path in track(listing.images, f"reading {directory.name}"):
        try:
            pixels.append(read_image(path, SIZE))
        except UserError as error:
            found.problems.append(str(error))
        else:
            found.counts[label] += 1
            paths.append(path)
    if paths:
        images = np.stack(pixels)
        found.identical = [[paths[number] for number in group] for group in identical(images)]
        found.near = [[paths[one], paths[other]] for one, other in near(images)]
    return found
