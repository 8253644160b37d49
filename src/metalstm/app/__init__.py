"""The web page: draw or drop a few images of each class, watch the learner train, try it. All on this machine."""

import os

from metalstm.app.scratch import scratch_folder
from metalstm.classifier import Classifier

__all__ = ["serve"]


def serve(learner: Classifier, port: int | None, browser: bool) -> None:
    """Serve the page until Ctrl-C, or until the terminal is closed.

    What is still computed then goes on in threads: end the process.

    Args:
        learner: Its settings are those of every classifier that the page trains. It is not changed.
        port: The port; None takes the first free one from 7860 on.
        browser: Whether to open the browser.

    Raises:
        UserError: The port is taken or not allowed.
    """
    with scratch_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # which gradio reads when it is imported
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))  # which torch makes when it is used
        from metalstm.app import server

        server.serve(learner, folder, port, browser)
