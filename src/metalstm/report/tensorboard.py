"""TensorBoard's event files."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from metalstm.errors import UserError
from metalstm.report.metrics import read_metrics

CHECK_SECONDS = 5  # between two looks at metrics.jsonl


@contextlib.contextmanager
def tensorboard(out: Path) -> Iterator[None]:
    """Copy the `metrics.jsonl` of a running training into a TensorBoard event file in the same folder.

    Args:
        out: The run folder.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(
            "--tensorboard needs tensorboard, which is not installed: pip install 'metalstm[tensorboard]'"
        ) from error
    events, stopped = _Events(out, SummaryWriter), threading.Event()

    def follow() -> None:
        while not stopped.wait(CHECK_SECONDS):
            events.update()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        events.update()
        events.close()


class _Events:
    """An event file that is written from the first line of `metrics.jsonl` on, once there is one."""

    def __init__(self, out: Path, make_writer: Callable[[Path], Any]):
        self._out, self._make_writer = out, make_writer
        self._writer: Any = None
        self._n_written = 0
        self._started = time.time()

    def update(self) -> None:
        metrics = self._out / "metrics.jsonl"
        lines = read_metrics(metrics)[self._n_written :] if metrics.exists() else []
        if not lines:
            return
        if self._writer is None:
            for old in self._out.glob("events.out.tfevents.*"):  # of a resumed run; the new file starts at its start
                old.unlink()
            self._writer = self._make_writer(self._out)
        for line in lines:
            for name in line.keys() - {"episode", "seconds"}:
                self._writer.add_scalar(name, line[name], line["episode"], self._started + line["seconds"])
        self._n_written += len(lines)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
