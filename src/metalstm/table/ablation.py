"""What each part of a trained method with a learned inner optimizer is worth: replaced after training."""

from typing import Any

from metalstm.evaluation import allow_tf32, evaluate
from metalstm.methods import Method
from metalstm.methods.tuning import Choice
from metalstm.optimizers import RULES
from metalstm.table import convergence, rivals
from metalstm.table.convergence import HEAD_ONLY, Learned
from metalstm.table.plan import Table

MEAN_TASKS = 100  # meta-train tasks that means of gates are taken over


def compare(table: Table) -> None:
    """Make `convergence` and `ablation` of a table whose rows are made; what exists stays."""
    learned = convergence.learned(table)
    if learned is None:
        return
    allow_tf32("fp32")  # all of it is tested as rows are
    curves = convergence.kept(convergence.path(table, "convergence"), lambda: convergence.convergence(table, learned))
    tuned = curves["starts"]["theta_0"]
    convergence.kept(convergence.path(table, "ablation"), lambda: ablation(table, learned, tuned))


def ablation(table: Table, learned: Learned, tuned: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of a trained method with one part replaced, on the table's meta-test episodes.

    Args:
        table: Gives the episodes.
        learned: The method.
        tuned: What `convergence` has for the start `theta_0`.

    Returns:
        For each variant, `whole` first: `accuracy`, `ci95`, `per_episode`.
    """
    variants: dict[str, Method] = {
        "whole": learned.method,
        **_rules(learned, tuned),
        **_without_gates(table, learned),
        "the learned optimizer from random weights": convergence.at_random(learned),
    }
    sampler = table.episodes("meta-test", table.main_task)
    return {
        name: convergence.noted(
            table,
            f"ablation: {name}",
            convergence.measured(evaluate(variant, sampler, table.budget.test_episodes, f"ablation: {name}")),
        )
        for name, variant in variants.items()
    }


def _rules(learned: Learned, tuned: dict[str, Any]) -> dict[str, Method]:
    """The learned optimizer replaced by tuned rules: the best one on all layers, and SGD on the head alone."""
    method = learned.method
    best, choice = convergence.best_rule(tuned, list(RULES))
    head = Choice(**tuned[HEAD_ONLY]["choice"])

    def ruled(choice: Choice, **changes: Any) -> Method:
        rule = RULES[choice.rule](choice.rate, choice.decay)
        loop = {"epochs": choice.steps, "few_shot_epochs": None, "batch_size": None}
        return method.with_inner_loop(optimizer=rule, **changes, **loop)

    return {
        f"{RULES[best].label} instead, tuned": ruled(choice),
        "SGD of the head alone instead, tuned": ruled(head, learner=rivals.BodyFixed(method.learner)),
    }


def _without_gates(table: Table, learned: Learned) -> dict[str, Method]:
    """The gates replaced by simpler things, if the learned optimizer has gates."""
    method, task = learned.method, table.main_task
    train = table.episodes("meta-train", task)
    if method.gates(train[0].support) is None:
        return {}
    episodes = map(train.__getitem__, range(min(MEAN_TASKS, table.budget.test_episodes)))
    unforgetting = method.with_inner_loop(optimizer=rivals.Unforgetting(method.optimizer))
    return {"f = 1": unforgetting, **rivals.simpler(method, episodes, task.n_way)}
