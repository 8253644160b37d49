"""List the data sets, download one, or check the files on disk.

Downloads are checked by their checksums, and `check` names images that are in more than one split, pixel for pixel.
`check folder:DIR` reads all images of your own folder. It prints the number of images of each class, what cannot be
read, and the images that are the same or nearly the same.

Example: metalstm data fetch omniglot
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from metalstm import data
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import DATA, parse
from metalstm.console import console, printable, results
from metalstm.data.folder import PREFIX
from metalstm.errors import UserError, unknown

say = partial(console.print, soft_wrap=True)

ACTIONS = ("list", "fetch", "check")


@dataclass(frozen=True)
class Data(Command):
    """Options of `metalstm data`."""

    action: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ACTION")]
    """`list`, `fetch` or `check`."""
    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="[NAME]", help=f"The data set: {DATA}", help_behavior_hint="(for fetch and check)"),
    ] = ""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """List, fetch or check."""
        if self.action not in ACTIONS:
            raise unknown("action", self.action, ACTIONS)
        if self.action == "list":
            self._list()
        elif not self.name:
            raise UserError(f"data {self.action}: which data set? one of {', '.join(data.DATASETS)}")
        elif self.action == "fetch":
            for path in data.fetch(self.name, self.common.data_root):
                print(path)  # noqa: T201
        elif self.name.startswith(PREFIX):
            _check_folder(Path(self.name.removeprefix(PREFIX)).expanduser())
        else:
            self._check()

    def _list(self) -> None:
        from rich import box
        from rich.table import Column, Table

        found = list(data.describe(self.common.data_root))
        names = ("name", "images", *data.SPLITS, "groups", "here")
        table = Table(*(Column(name, no_wrap=True) for name in names), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for each in found:
            counts = [str(each.classes[split]) for split in data.SPLITS]
            shape = "x".join(map(str, each.image_shape))
            table.add_row(each.name, shape, *counts, each.groups, "yes" if each.present else "no")
        results().print(table)
        for each in found:
            results().print(f"License of {each.name}: {each.licence}", highlight=False)
        results().print(f"{PREFIX}DIR  your own images as DIR/<class>/*")

    def _check(self) -> None:
        files = data.check(self.name, self.common.data_root)
        for path, state in files:
            print(f"{state}\t{path}")  # noqa: T201
        wrong = sum(state not in ("original", "rebuilt") for _, state in files)
        if wrong:
            raise UserError(f"{wrong} of {len(files)} files are not as released: metalstm data fetch {self.name}")
        dataset = data.find(self.name)
        if dataset.groups:
            counts = zip(dataset.n_groups, data.SPLITS, strict=True)
            shown = ", ".join(f"{n} {dataset.groups} in {split}" for n, split in counts)
            say(f"groups of classes, for --within-group: {shown}")
        self._check_splits()

    def _check_splits(self) -> None:
        """Name the images that are in more than one split, and say what each split has without them."""
        from metalstm.data.duplicates import across_splits

        meta_sets = data.load(self.name, self.common.data_root)
        groups = across_splits(meta_sets.splits)
        for group in groups:
            print("identical", *(f"{place.split}/{place.label}[{place.number}]" for place in group), sep="\t")  # noqa: T201
        if not groups:
            say(f"no image of {self.name} is in two splits")
            return
        say(f"{len(groups)} images of {self.name} are in more than one split. Without them:")
        for split, images in meta_sets.splits.items():
            labels = Counter(place.label for group in groups for place in group if place.split == split)
            whole = int(np.diff(images.spans).sum())
            lost = ", ".join(f"{count} less in {label}" for label, count in sorted(labels.items()))
            say(f"  {split} has {whole - labels.total()} of {whole} images{lost and f': {lost}'}")


def _check_folder(directory: Path) -> None:
    """Print what is in a folder, a line for each thing, and a summary on stderr."""
    found = data.survey(directory)

    def line(kind: str, *words: object) -> None:
        print(printable("\t".join([kind, *map(str, words)])))  # noqa: T201

    for label, count in found.counts.items():
        line("class", label, found.splits.get(label, "no split"), count)
    for path in found.others:
        line("left out", path.relative_to(directory))
    say(f"{directory} has {sum(found.counts.values()):,} images of {sum(map(bool, found.counts.values())):,} classes")
    if found.others:
        say(f"{len(found.others):,} files are no images by their names and are always left out")
    for kind, groups in (("identical", found.identical), ("near", found.near)):
        places = Counter(map(found.where, groups))
        for group in groups:
            line(kind, found.where(group), *(path.relative_to(directory) for path in group))
        what = "groups of identical images" if kind == "identical" else "pairs of nearly identical images"
        counts = f" ({', '.join(f'{count:,} {place}' for place, count in sorted(places.items()))})" if groups else ""
        say(f"{len(groups):,} {what}{counts}")
    for problem in found.problems:
        line("problem", problem)
    if found.problems:
        raise UserError(f"{len(found.problems):,} problems in {directory}: mend them; or --skip-bad goes on without")


def command(words: Sequence[str]) -> Data:
    """`metalstm data WORDS`."""
    return parse(Data, words, "data", __doc__)
