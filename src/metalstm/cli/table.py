"""Make the paper's Table 1 on a data set: train, tune and test every method, and compare.

What is already there is not made again: stop the command at any time, and give it again to go on. Rows can be made in
parallel, by commands with a different `--only` each. Rows that start from the same pre-training share its folder: let
one of them come first. The command without `--only` also compares the optimizers. It takes hours; with `--quick`,
minutes.

Example: metalstm table --data cifar-fs --quick
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from metalstm import data
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import DATA, Kind, parse, traits_of
from metalstm.console import console
from metalstm.settings import Count, Positive, Precision


@dataclass(frozen=True)
class Table(Command):
    """Options of `metalstm table`."""

    resumes: ClassVar[bool] = True

    data: Annotated[str, tyro.conf.arg(help=f"Data set: {DATA}")] = "glyphs"
    kind: Kind = "auto"
    """What the images of folder:DIR show, as for `metalstm train`."""
    out: Path | None = None
    """Folder of the table; results/DATA by default, results/DATA-quick with `--quick`."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Make some rows, by their names, with commas between them: `maml,protonet`, or '*-paper' for all that end so. The
    option may be given several times. `list` lists the names."""
    quick: bool = False
    """Short trainings and few episodes, to see what the table looks like."""
    precision: Precision = "fp32"
    """Precision of training and tuning: fp32, bf16 or tf32 (CUDA). Tests always use fp32."""
    minutes: Positive | None = None
    """Minutes of each training at the most, validations included; as many episodes as the recipe says by default."""
    seeds: Count = 1
    """Number of seeds from which the best Meta-LSTM is trained at 5 shots, to show how much trainings differ."""
    again: str = ""
    """Why meta-test is opened again for a result that was made before and is missing now; `run.json` keeps it."""
    skip_bad: bool = False
    """Of folder:DIR: go on without images that cannot be read and without classes that have no images."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Make what is missing, then write `table.md`, `table.json` and `report.html`."""
        from metalstm import kernels, table

        if self.only == ("list",):
            for row in table.ROWS:
                print(f"{row.name}\t{row.label}")  # noqa: T201
            return
        chosen = table.select(*self.only)
        device = self.common.start()
        if device.startswith("cpu"):
            kernels.build()
        traits = traits_of(self.data, self.kind)
        meta_sets = data.load(self.data, self.common.data_root, traits=traits, skip_bad=self.skip_bad)
        out = self.out or Path("results") / (meta_sets.short_name + ("-quick" if self.quick else ""))
        budget = replace(table.QUICK if self.quick else table.Budget(), train_minutes=self.minutes)
        making = table.Table(meta_sets, out, budget, self.common.seed, device, self.precision)
        table.make(making, chosen, range(self.common.seed + 1, self.common.seed + self.seeds), self.again)
        table.write(making)
        if not self.only:
            table.compare(making)
            table.write(making)
        console.print(f"{out}: table.md, table.json, report.html", soft_wrap=True)
        print((out / "table.md").read_text(), end="")  # noqa: T201


def command(words: Sequence[str]) -> Table:
    """`metalstm table WORDS`."""
    return parse(Table, words, "table", __doc__)
