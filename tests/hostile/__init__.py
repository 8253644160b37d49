"""Hostile cases as seeded generators; `KINDS` are the files that hold them, each with a class `Cases`."""

KINDS = ("checkpoints", "archives", "pictures", "lists", "commands", "arrays", "requests")
