"""Take a trained method apart: test it with one part off, or replaced by something simpler, on the same episodes.

Gates become their means over meta-train tasks, ever coarser; f becomes 1; gates are blind to an input, or remember
nothing; only the head moves, or only the body; a tuned rule takes the optimizer's place; no step is taken at all. What
a checkpoint does not have is left out. Each line shows the paired difference from the whole, with its 95 % interval:
what the part is worth. `--rivals` tests other checkpoints on the same episodes.

Writes ablation.json, with the accuracy of every episode, and ablation.html, with pictures of the differences and of
the gates of many tasks. Looks at meta-val unless asked otherwise; `run.json` of a run folder notes each time that
meta-test is opened.

Example: metalstm ablate runs/meta-lstm-glyphs-5w5s-best --tasks 5w1s 5w5s --rivals runs/lslr-glyphs-5w5s-best
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from metalstm import data
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.console import console
from metalstm.errors import UserError, unknown
from metalstm.settings import Count, Ways


@dataclass(frozen=True)
class Ablate(Command):
    """Options of `metalstm ablate`."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """The name of a shipped checkpoint, a run folder (its best checkpoint by meta-val), or a file. Its method has an
    inner loop."""
    data: str | None = None
    """The data set, if its folder has moved. It must hold what the checkpoint was trained on."""
    split: str = "meta-val"
    """meta-val, meta-test or meta-train."""
    n_way: Ways | None = None
    """Classes in an episode; as trained by default."""
    n_shot: Count | None = None
    """Support images of a class; as trained by default."""
    tasks: tuple[str, ...] = ()
    """Several kinds of tasks, in place of --n-way and --n-shot: 5w1s 5w5s 20w1s. Each is a column of the table, and a
    color in the pictures. 5w1s-within draws all classes of an episode from one group."""
    n_query: Count = 15
    """Query images of a class."""
    episodes: Annotated[int, Meta(ge=2, le=10**9)] = 200
    """Episodes of each kind to test on."""
    mean_tasks: Count = 100
    """Meta-train tasks of each kind that means of gates and of their inputs are taken over."""
    rivals: tuple[str, ...] = ()
    """Other checkpoints, of any method, to test on the same episodes; a line for each. For example the same recipe
    with `--optimizer learned-rates --forget-gate`, meta-trained as long."""
    quick: bool = False
    """Tune the rules in few steps on few episodes, to see what the page looks like."""
    out: Path | None = None
    """Folder to write to; ablation/NAME by default."""
    skip_bad: bool = False
    """Of folder:DIR: go on without images that cannot be read and without classes that have no images."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Test all variants, write the files, print the table."""
        from metalstm.episodes import Task

        if self.split not in data.SPLITS:
            raise unknown("split", self.split, data.SPLITS)
        if self.tasks and (self.n_way or self.n_shot):
            raise UserError("--tasks names classes and shots: leave out --n-way and --n-shot, or --tasks")
        tasks = [Task.parse(task) for task in self.tasks]
        device = self.common.start()
        from metalstm import ablation, checkpoint, kernels
        from metalstm.cli import tested
        from metalstm.report import markdown

        if device.startswith("cpu"):
            kernels.build()
        config = checkpoint.load_method(self.checkpoint)[1]
        tasks = tasks or [Task(self.n_way or config.n_way, self.n_shot or config.n_shot)]
        runs = tested.to_note(self.split, (self.checkpoint, *self.rivals))
        meta_sets = tested.load_data(config, self.data, self.common.data_root, self.skip_bad)
        result = ablation.ablate(
            self.checkpoint,
            meta_sets,
            tasks,
            self.split,
            self.episodes,
            self.n_query,
            self.common.seed,
            self.mean_tasks,
            self.rivals,
            ablation.QUICK if self.quick else ablation.SEARCH,
            device,
        )
        for checkpoint_name, folder in runs.items():
            for opened in ablation.openings(result, checkpoint_name):
                tested.note(folder, opened, reason=f"ablation of {self.checkpoint}")
        path = checkpoint.find(self.checkpoint)
        out = self.out or Path("ablation") / (path.parent.name if (path.parent / "config.json").exists() else path.stem)
        ablation.write(out, result)
        console.print(f"{out}: ablation.json, ablation.html", soft_wrap=True)
        title = f"{self.checkpoint}, {self.split} of {config.data}, {self.episodes} episodes"
        print(markdown(title, ablation.blocks(ablation.columns_of(result))), end="")  # noqa: T201


def command(words: Sequence[str]) -> Ablate:
    """`metalstm ablate WORDS`."""
    return parse(Ablate, words, "ablate", __doc__)
