"""The table's trained method with a learned inner optimizer, taken apart on meta-test."""

from typing import Any

from metalstm import ablation
from metalstm.evaluation import allow_tf32, evaluate, plain
from metalstm.methods.tuning import Choice
from metalstm.optimizers import RULES
from metalstm.table import convergence
from metalstm.table.convergence import HEAD_ONLY, Learned
from metalstm.table.plan import Table


def compare(table: Table) -> None:
    """Make `convergence` and `ablation` of a table whose rows are made; what exists stays."""
    learned = convergence.learned(table)
    if learned is None:
        return
    allow_tf32("fp32")  # all of it is tested as rows are
    curves = convergence.kept(convergence.path(table, "convergence"), lambda: convergence.convergence(table, learned))
    tuned = curves["starts"]["theta_0"]
    convergence.kept(convergence.path(table, "ablation"), lambda: parts(table, learned, tuned))


def parts(table: Table, learned: Learned, tuned: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of a trained method with one part replaced, on the table's meta-test episodes.

    Args:
        table: Gives the episodes.
        learned: The method.
        tuned: What `convergence` has for the start `theta_0`.

    Returns:
        For each variant, `whole` first: `accuracy`, `ci95`, `per_episode`.
    """
    method, task = learned.method, table.main_task
    train, test = (table.episodes(split, task) for split in ("meta-train", "meta-test"))
    n_means = min(ablation.MEAN_TASKS, table.budget.test_episodes)
    choices = {ablation.RULE: convergence.best_rule(tuned, list(RULES))[1]}
    if HEAD_ONLY in tuned:
        choices[ablation.HEAD_RULE] = Choice(**tuned[HEAD_ONLY]["choice"])
    variants = {
        **ablation.variants(method, map(train.__getitem__, range(n_means)), task.n_way),
        **ablation.ruled(method, choices),
        **{f"the learned optimizer from {name} weights": each for name, each in convergence.at_random(learned).items()},
    }
    return {
        name: convergence.noted(
            table,
            f"ablation: {name}",
            plain(evaluate(variant, test, table.budget.test_episodes, f"ablation: {name}")),
        )
        for name, variant in variants.items()
    }
