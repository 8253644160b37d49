"""The tables of terms: what each row trains, how it was tuned, and what stays unequal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metalstm.episodes import Task
from metalstm.report import Block, Heading
from metalstm.settings import TrainingSettings, to_dict
from metalstm.table import terms
from metalstm.table.contents import LABELS, Result, Results, by_block, groups
from metalstm.table.terms import Terms

_LENGTH = {"episodes", "minutes", "val_every", "val_episodes", "patience"}  # not what is trained on, and how

Cell = Callable[[Task, str, Result], str]  # task, name of a row and its result -> what a reader sees


def terms_tables(results: Results) -> list[Block]:
    """What each row trains, how it was tuned, and what is unequal: from the terms that results keep."""
    unequal = {task: terms.unequal(column) for task, column in results.items()}
    trains: dict[str, Cell] = {
        "start": _of_terms(_start),
        "inner loop trains": _of_terms(_inner_loop),
        "meta-train episodes": _of_terms(_episodes),
        "parameters": lambda task, name, result: f"{result['parameters']:,}",
        "own minutes": lambda task, name, result: _minutes(result),
    }
    differs: dict[str, Cell] = {
        "tuned on meta-val": _of_terms(_tuned),
        "other than most rows": lambda task, name, result: _notes(unequal[task].get(name, {})),
    }
    if not any(results.values()):
        return []
    return [
        Heading("What each row trains"),
        "Minutes are of the row's own training and tuning. If the columns differ, their values stand in order.",
        *_starts(results),
        *_tables(results, trains),
        Heading("What stays unequal"),
        "Settings of the network, of augmentation, of validation and the length of training that are not those of most "
        "rows of the block; most rows' values are in brackets. They are found by comparing the configurations.",
        *_tables(results, differs),
    ]


def _tables(results: Results, cells: Mapping[str, Cell]) -> list[Block]:
    """A table for each group of columns, with the label of a row and some cells."""
    blocks: list[Block] = []
    for group in groups(results):

        def line(name: str, group: Results = group) -> list[str]:
            own = [(task, name, column[name]) for task, column in group.items() if name in column]
            return [_over_tasks([cell(*each) for each in own]) for cell in cells.values()]

        blocks += [
            f"{', '.join(task.words for task in group)}:",
            (("method", *cells), lines_of(by_block(group), line)),
        ]
    return blocks


def _starts(results: Results) -> list[Block]:
    """The pre-trainings that rows start from, each once."""
    every = (result.get("terms") or {} for column in results.values() for result in column.values())
    starts = {terms.start_name(start): start for of in every if (start := of.get("start"))}
    usual = to_dict(TrainingSettings())
    lines: list[Block] = []
    for name, start in starts.items():
        own = {key: value for key, value in start["training"].items() if value != usual[key] and key not in _LENGTH}
        settings = ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in own.items())
        steps = _of(start["steps"], start["training"]["episodes"])
        took = f"{steps} mini-batches, {start['seconds'] / 60:.1f} minutes"
        lines.append(f"Shared pre-training {name}: {took}; {settings}.")
    return lines


def _over_tasks(values: Sequence[str]) -> str:
    """One value for all columns, or one for each."""
    return values[0] if len(set(values)) == 1 else " / ".join(value or "none" for value in values)


def _of_terms(cell: Callable[[Terms], str]) -> Cell:
    """A cell that is empty where a result has kept no terms."""
    return lambda task, name, result: cell(result["terms"]) if result.get("terms") else ""


def _start(of: Terms) -> str:
    return of["start"]["run"] if of["start"] else "random weights" if of["episodes"] else "none"


def _inner_loop(of: Terms) -> str:
    return of["part"] + (f", {of['steps']} steps" if of["steps"] else "")


def _episodes(of: Terms) -> str:
    done, planned = of["episodes"], of["config"]["training"]["episodes"]
    return _of(done, planned) if done else "none"


def _of(done: int, planned: int) -> str:
    """How long a training was, and how long it could have been."""
    return f"{done:,}" if done >= planned else f"{done:,} of {planned:,}"


def _minutes(result: Result) -> str:
    took = terms.minutes(result, with_start=False)
    return "" if took is None else f"{took:.{int(took < 10)}f}"


def _tuned(of: Terms) -> str:
    parts = []
    if of["episodes"]:
        episodes = of["config"]["training"]["val_episodes"]
        parts.append(f"checkpoint: {of['validations']} times {episodes} episodes")
    if of["search"]:
        parts.append(f"settings: {of['search']['few']} to {of['search']['many']} episodes each")
    return "; ".join(parts) or "nothing"


def _notes(found: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{setting.replace('_', ' ')}: {_word(own)} ({_word(most)})" for setting, (own, most) in found.items()
    )


def _word(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case None | "":
            return "none"
        case _:
            return str(value)


def lines_of(blocks: Mapping[str, Sequence[str]], cells: Callable[[str], Sequence[str]]) -> list[Sequence[str]]:
    """The lines of a table, under the titles of their blocks: the label of each row, and its cells."""
    lines: list[Sequence[str]] = []
    for title, names in blocks.items():
        lines += [(title,), *((LABELS[name], *cells(name)) for name in names)]
    return lines
