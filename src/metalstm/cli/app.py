"""Open a page in the browser: draw or drop a few images of each class, watch it learn, try it on new ones.

The page is for this machine only. It sends nothing to any other.

Example: metalstm app
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated

from msgspec import Meta

from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.errors import UserError


@dataclass(frozen=True)
class App(Command):
    """Options of `metalstm app`."""

    checkpoint: str | None = None
    """The meta-learner: the name of a shipped checkpoint, a run folder or a file. By default, the shipped one that
    suits the images."""
    port: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    """Port of the page. 0 takes the first free one from 7860 on."""
    browser: bool = True
    """Open the browser."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Serve until Ctrl-C."""
        device = self.common.start()
        if find_spec("gradio") is None:
            raise UserError("the web page needs gradio, which is not installed: pip install 'metalstm[app]'")
        from metalstm import app, checkpoint
        from metalstm.classifier import Classifier

        if self.checkpoint is not None:
            checkpoint.load_method(self.checkpoint)  # complains now, not on the page
        learner = Classifier(self.checkpoint, self.common.seed, device)
        app.serve(learner, self.port or None, self.browser)
        os._exit(0)  # a thread that still learns is not waited for


def command(words: Sequence[str]) -> App:
    """`metalstm app WORDS`."""
    return parse(App, words, "app", __doc__)
