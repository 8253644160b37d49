"""Damaged checkpoints, classifiers and run folders, of every method."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from hostile.mutations import mutated, mutated_text
from metalstm import checkpoint, recipes
from metalstm.classifier import Classifier
from metalstm.data import ImagesByClass, MetaSets
from metalstm.methods import METHODS, RunConfig
from metalstm.settings import Traits
from metalstm.training import record, train

SMALL = {"filters": 2, "hidden_size": 1, "shared_head": True, "pretrain": 0, "val_episodes": 2, "val_every": 2}
RUN_FILES = ("config.json", "metrics.jsonl", "run.json", "last.safetensors", "best.safetensors")
IMAGES = list(np.random.RandomState(0).randint(0, 256, (6, 16, 16), np.uint8))
LABELS = ["a", "b", "c"] * 2


def meta_sets() -> MetaSets:
    """Images of nothing, in three splits of three classes."""
    images = np.random.RandomState(1).randint(0, 256, (36, 16, 16, 1), np.uint8)
    spans = np.array([[4 * k, 4 * k + 4] for k in range(9)])
    names = tuple(f"class {k}" for k in range(9))
    splits = {
        split: ImagesByClass(images, names[3 * k : 3 * k + 3], spans[3 * k : 3 * k + 3], split)
        for k, split in enumerate(("meta-train", "meta-val", "meta-test"))
    }
    return MetaSets("none", splits, "none", "none")


def small(method: str, sets: MetaSets) -> RunConfig:
    """A run of a method, as small as it can be."""
    recipe = recipes.named(method, "best", Traits(), 1)
    config = recipes.run_config(sets, recipe, method, "best", n_way=3, n_shot=1, n_query=2)
    takes = {name: value for name, value in SMALL.items() if recipes.has_setting(config, name)}
    if method == "from-random":  # which has no learned head to share
        del takes["shared_head"]
    config = recipes.with_changes(config, takes)
    return replace(config, training=replace(config.training, episodes=2 if METHODS[method].meta_trained else 0))


class Cases:
    """Whole files, and what reads the damaged ones.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path):
        self.folder, self.sets = folder, meta_sets()
        self.methods = list(METHODS)
        for method in self.methods:
            config = small(method, self.sets)
            facts = {"config": recipes.to_dict(config), "meta_val": 50.0, "episode": 3}
            facts["calibration"] = [{"n_way": 3, "n_shot": 2, "temperature": 2.0, "least": 0.6, "own": 0.5}]
            path = folder / f"{method}.safetensors"
            checkpoint.save(path, checkpoint.method_tensors(recipes.build(config)), facts)
            Classifier(path).fit(IMAGES, LABELS).save(folder / f"{method}-fitted.safetensors")
            Classifier.load(folder / f"{method}-fitted.safetensors").predict_proba(IMAGES)
        self.config = small("meta-lstm", self.sets)
        train(self.config, self.sets, folder / "whole")
        self.longer = replace(self.config, training=replace(self.config.training, episodes=4))

    def __call__(self, random: np.random.RandomState, number: int) -> None:
        method = self.methods[number // 8 % len(self.methods)]
        path = self.folder / "damaged.safetensors"
        match number % 8:
            case 0:
                self._resume(RUN_FILES[number // 8 % len(RUN_FILES)], random)
            case 1 | 2 | 3:
                path.write_bytes(mutated((self.folder / f"{method}-fitted.safetensors").read_bytes(), random))
                answer = Classifier.load(path).predict_proba(IMAGES)
                json.dumps(answer.tolist(), allow_nan=False)
            case _:
                path.write_bytes(mutated((self.folder / f"{method}.safetensors").read_bytes(), random))
                checkpoint.load_method(path)
                Classifier(path).fit(IMAGES, LABELS).predict_proba(IMAGES)

    def _resume(self, name: str, random: np.random.RandomState) -> None:
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.folder / "whole", run)
        change = mutated if name.endswith("safetensors") else mutated_text
        (run / name).write_bytes(change((run / name).read_bytes(), random))
        train(self.longer, self.sets, run, resume=True)
        record.read(run)
