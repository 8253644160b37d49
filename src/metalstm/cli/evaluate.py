"""Test a checkpoint: the mean query accuracy over episodes, with its 95 % confidence interval.

`--data` tests it on other data, for example your own images; the result then says what it was trained on. `run.json`
of a run folder notes each time that meta-test is opened.

Example: metalstm evaluate runs/meta-lstm-glyphs-5w5s-best
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from msgspec import Meta

from metalstm import data
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.errors import UserError, unknown
from metalstm.methods.gradient import QueryNorm
from metalstm.settings import Count, Precision, Ways, option


@dataclass(frozen=True)
class Evaluate(Command):
    """Options of `metalstm evaluate`."""

    many_processes: ClassVar[bool] = True

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """The name of a shipped checkpoint, a run folder (its best checkpoint by meta-val), or a file."""
    data: str | None = None
    """The data set: other data than the checkpoint was trained on, or the same in a folder that has moved."""
    split: str = "meta-test"
    """meta-test, meta-val or meta-train; `all` for all classes of other data."""
    n_way: Ways | None = None
    """Classes in an episode; as trained by default."""
    n_shot: Count | None = None
    """Support images of a class; as trained by default."""
    n_query: Count = 15
    """Query images of a class."""
    episodes: Annotated[int, Meta(ge=2, le=10**9)] = 600
    """Episodes to test on."""
    within_group: bool = False
    """Draw all classes of an episode from one group: an alphabet, a superclass or a script. See metalstm data list."""
    query_norm: QueryNorm | None = None
    """Another normalization of queries than the checkpoint's; `batch` is transductive."""
    precision: Precision | None = None
    """fp32, tf32 (CUDA) or bf16; as trained by default."""
    json: str | None = None
    """File to write the result to, `-` for stdout."""
    skip_bad: bool = False
    """Of folder:DIR: go on without images that cannot be read and without classes that have no images."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Evaluate and print."""
        if self.split not in (splits := (*data.SPLITS, "all")):
            raise unknown("split", self.split, splits)
        device = self.common.start()
        from metalstm import checkpoint, distributed, files, recipes
        from metalstm.cli import tested
        from metalstm.evaluation import evaluate_checkpoint

        changes = {name: getattr(self, name) for name in ("query_norm", "precision") if getattr(self, name)}
        with distributed.all_fail_together():
            config = checkpoint.load_method(self.checkpoint)[1]
            for name, value in changes.items():
                if not recipes.has_setting(config, name):
                    raise UserError(f"{option(name)} {value}: {config.method} has no such setting: leave it out")
            meta_sets = tested.load_data(config, self.data, self.common.data_root, self.skip_bad)
            is_own = meta_sets.digest == config.data_digest
            runs = tested.to_note(self.split, [self.checkpoint] if is_own else [])
        result = evaluate_checkpoint(
            self.checkpoint,
            meta_sets,
            self.split,
            self.n_way,
            self.n_shot,
            self.n_query,
            self.episodes,
            self.common.seed,
            changes,
            device,
            self.within_group,
        )
        if distributed.rank() > 0:
            return
        for folder in runs.values():
            tested.note(folder, result)
        if self.json == "-":
            print(files.to_json(result))  # noqa: T201
            return
        within = " within a group" if self.within_group else ""
        task = f"{self.split} {result['n_way']}-way {result['n_shot']}-shot{within}, {self.episodes} episodes"
        accuracy = f"{result['accuracy']:.2f} +- {result['ci95']:.2f} %"
        label = " (transductive)" if result["transductive"] else ""
        if result["other_data"]:
            label += f" (other data: trained on {config.data})"
        print(f"{result['data']} {task}: {accuracy}{label}")  # noqa: T201
        if self.json:
            files.write(Path(self.json), (files.to_json(result) + "\n").encode())


def command(words: Sequence[str]) -> Evaluate:
    """`metalstm evaluate WORDS`."""
    return parse(Evaluate, words, "evaluate", __doc__)
