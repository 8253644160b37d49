"""Hostile cases as seeded generators, kills of real commands, and clients of the page.

`KINDS` are the files that hold cases, each with a class `Cases`, and their shares of a run.
"""

KINDS = {"checkpoints": 6, "archives": 3, "pictures": 4, "lists": 2, "commands": 2, "arrays": 6, "requests": 1}


def shares(number: int, kinds: dict[str, int]) -> dict[str, int]:
    """How many of a number are of each kind, by their shares and rounded up."""
    return {kind: -(-number * share // sum(kinds.values())) for kind, share in kinds.items()}
