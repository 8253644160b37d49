"""The command line. One file a command; the docstring of a file is what the help of its command says.

A file is imported when its command runs, so that `metalstm --help` needs neither torch nor anything else that is slow.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from metalstm.cli import process
from metalstm.errors import Interrupted, Problems, UserError, cut, unknown

if TYPE_CHECKING:
    from metalstm.cli.common import Command

COMMANDS = ("demo", "data", "train", "evaluate", "ablate", "table", "adapt", "predict", "export", "app")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `metalstm ARGV` and exit: status 0 on success, 2 on a user's mistake, 130 on Ctrl-C.

    Args:
        argv: The words; by default those of this process, which then ends with the command.
    """
    is_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    _log_to_stderr()
    command = None
    try:
        if argv[:1] in (["-h"], ["--help"]):
            print(usage())  # noqa: T201
            return
        command = parse(argv)
        if process.rank() is not None and not command.many_processes:
            raise UserError(f"{argv[0]} runs in one process, unlike train and evaluate: start it without torchrun")
        command.run()
        if is_process or process.rank() is not None:
            process.leave(0, at_once=True)
    except KeyboardInterrupt:
        process.fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if "--debug" in argv:
            raise
        _explain(error, command)


def parse(argv: Sequence[str]) -> "Command":
    """The command that `metalstm ARGV` runs, with its options.

    Raises:
        UserError: There is no such command or option, or a value is not allowed.
        SystemExit: The help was asked for.
    """
    if not argv:
        raise UserError(f"which command? one of {', '.join(COMMANDS)}: metalstm --help says what they do")
    name, *words = argv
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return import_module(f"metalstm.cli.{name}").command(words)


def usage() -> str:
    """What `metalstm --help` prints."""
    lines = [f"  {name:9} {_docstring(name).splitlines()[0]}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: metalstm COMMAND [OPTIONS]",
            "",
            "Learn to learn from a few images: the Meta-Learner LSTM of Ravi & Larochelle (ICLR 2017).",
            "",
            "commands:",
            *lines,
            "",
            "`metalstm COMMAND --help` shows the options of a command, with an example.",
            "Start with: metalstm demo",
        ]
    )


def _docstring(name: str) -> str:
    """The docstring of a command's file, which is not imported."""
    import ast

    spec: Any = find_spec(f"metalstm.cli.{name}")
    return ast.get_docstring(ast.parse(spec.loader.get_source(spec.name))) or ""


def _explain(error: Exception, command: "Command | None") -> None:
    """One line on stderr, or a list of problems, and the exit status of an error."""
    if isinstance(error, Problems):
        process.fail(str(error), 2)
    said = cut(" ".join(str(error).split()))
    if isinstance(error, Interrupted):
        again = command is not None and command.resumes
        more = "give the same command again" if again else "go on with the same command and --resume"
        process.fail(f"{said}; {more}", 130)
    if isinstance(error, (UserError, OSError)):
        process.fail(said, 2)
    from metalstm import distributed

    if distributed.world_size() > 1 and distributed.is_loss_of_process(error):
        if process.rank():
            process.leave(1)
        process.fail("another process of this run has ended; go on with the same command and --resume", 1)
    process.fail(f"internal error, {type(error).__name__}: {said}: please report it with the output of --debug", 1)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("metalstm")
    logger.setLevel(logging.INFO if not process.rank() else logging.ERROR)  # of several processes one speaks
    logger.handlers = [handler]
