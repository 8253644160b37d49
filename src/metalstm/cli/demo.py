"""See it work: meta-train on built-in drawings of the world's scripts, test on scripts it never saw.

Takes under five minutes on two cores and needs no network. Writes a run folder with a page, report.html.

Example: metalstm demo --out demo
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.settings import Count


@dataclass(frozen=True)
class Demo(Command):
    """Options of `metalstm demo`."""

    resumes: ClassVar[bool] = True

    out: Path = Path("demo")
    """Run folder. If it holds a run of the demo, that run is resumed."""
    episodes: Count = 400
    """Meta-train episodes."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Train, compare, report."""
        from metalstm.demo import demo

        demo(self.out, self.episodes, self.common.seed, self.common.start())


def command(words: Sequence[str]) -> Demo:
    """`metalstm demo WORDS`."""
    return parse(Demo, words, "demo", __doc__)
