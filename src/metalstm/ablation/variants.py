"""A trained method taken apart: every variant of it that its optimizer offers."""

from collections.abc import Iterable
from typing import Any

from metalstm.ablation.means import means, simpler
from metalstm.ablation.parts import Blind, BodyFixed, ClassMeans, Forgetful, GivenGates, Unforgetting
from metalstm.episodes import Episode
from metalstm.methods import GradientMethod, Method, Search, Tuning
from metalstm.methods.tuning import Choice, Episodes, tune_rule
from metalstm.optimizers import RULES, SGD

WHOLE = "whole"
RULE, HEAD_RULE = "the best fixed rule, tuned", "SGD of the head alone, tuned"
TUNED = ("sgd", "momentum")  # the rules that the best one is chosen from


def variants(method: GradientMethod, episodes: Iterable[Episode], n_way: int) -> dict[str, Method]:
    """A trained method, and the same with one part off or replaced by something simpler. Nothing is trained or tuned.

    Args:
        method: Its optimizer says what can be taken off it: gates, what they see, what they remember.
        episodes: Of meta-train, batches with one dimension of tasks; means are taken over them.
        n_way: Classes of these episodes, and of those that the variants are to be tested on.

    Returns:
        Each variant by its name, `whole` first.
    """
    episodes = list(episodes)
    optimizer, n_body = method.optimizer, method.learner.n_body
    gates, inputs = means(method, episodes)
    simple: dict[str, Any] = {}
    if gates is not None:
        tables = simpler(gates, method.learner.layers(n_way), n_body)
        simple = {name: GivenGates(table) for name, table in tables.items()}
        if (gates[:, 0] != 1).any():
            simple["f = 1"] = Unforgetting(optimizer)
    simple |= {f"gates blind to {name}": Blind(optimizer, name, mean) for name, mean in inputs.items()}
    if optimizer.forget(method.start(episodes[0].support).state) is not None:
        simple["gates remember nothing"] = Forgetful(optimizer)
    found: dict[str, Method] = {name: method.with_inner_loop(optimizer=each) for name, each in simple.items()}
    if n_body and method.settings.moves == "all":
        found["only the head moves"] = method.with_inner_loop(moves="head")
        found["only the body moves"] = method.with_inner_loop(moves="body")
    still = method.with_inner_loop(optimizer=SGD(0.0))
    return {WHOLE: method, **found, ClassMeans.label: ClassMeans(method), "no step": still}


def tune(method: GradientMethod, episodes: Episodes, search: Search, description: str) -> dict[str, Choice]:
    """The settings of the rules that `ruled` puts in the optimizer's place, chosen on meta-val.

    Args:
        method: What adapts; the rules train the same layers.
        episodes: Of meta-val, others than those that are tested.
        search: How thorough the search is.
        description: For progress bars.

    Returns:
        The best rule of all layers, and SGD of the head alone if there are other layers that move.
    """
    tuning = Tuning(episodes, search, lambda _, compute: compute(), description)
    choices = {RULE: max((tune_rule(rule, method, tuning) for rule in TUNED), key=lambda choice: choice.meta_val)}
    if method.learner.n_body and method.settings.moves == "all":
        choices[HEAD_RULE] = tune_rule("sgd", head_alone(method), tuning)
    return choices


def ruled(method: GradientMethod, choices: dict[str, Choice]) -> dict[str, Method]:
    """The learned optimizer replaced by tuned rules."""
    wholes = {RULE: method, HEAD_RULE: head_alone(method)}
    return {
        name: wholes[name].with_inner_loop(
            optimizer=RULES[choice.rule](choice.rate, choice.decay),
            epochs=choice.steps,
            few_shot_epochs=None,
            batch_size=None,
        )
        for name, choice in choices.items()
    }


def head_alone(method: GradientMethod) -> GradientMethod:
    """The method with a body that gets no gradient."""
    return method.with_inner_loop(learner=BodyFixed(method.learner))
