"""Fine-tuning: a pre-trained network with a new head, trained on the support set by a fixed rule."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from metalstm.errors import unknown
from metalstm.learners import Learner
from metalstm.methods.base import Recipe, Row, RunConfig, Tuning
from metalstm.methods.gradient import Epochs, GradientMethod, InnerLoop
from metalstm.methods.pretrained import on_pretrained
from metalstm.methods.published import table_1
from metalstm.methods.tuning import Choice, tune_rule
from metalstm.optimizers import RULES, SGD, InnerOptimizer
from metalstm.settings import Count, Traits, Weight


class Finetune(GradientMethod):
    """A pre-trained network whose layers, or whose head alone, are trained on the support set by a fixed rule.

    Queries are normalized by running averages that go on from those of the pre-training, as the authors' are. The head
    starts at 0. The authors' random one is far behind (results/README.md), and a baseline is not to be weak.

    References:
        Ravi & Larochelle 2017, section 5.2, Baseline-finetune.
    """

    @dataclass(frozen=True)
    class Settings(InnerLoop):
        """Steps on the whole support set; `tune` chooses the rule, its rate and decay, and the number of steps."""

        epochs: Epochs = 15
        """Steps, each on the whole support set."""
        batch_size: Count | None = None
        """Support images in a step; None takes all at once."""
        norm_momentum: Weight = 0.1
        """Weight of the new batch in the running averages."""
        rules: tuple[str, ...] = ("sgd",)
        """Fixed rules to choose from on meta-val."""

    settings: Settings  # pyright: ignore[reportIncompatibleVariableOverride]  (never assigned another one)

    label = "Fine-tuning"
    meta_trained = False

    @classmethod
    def build(cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any) -> "Finetune":
        """Not pre-trained yet: `start_from` gives it a network."""
        for rule in config.settings.rules:
            if rule not in RULES:
                raise unknown("rule", rule, RULES)
        return super().build(config, learner, optimizer, generator)

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`, all layers, SGD."""
        recipe = on_pretrained(name, traits)
        return replace(recipe, settings=cls.Settings(), optimizer="sgd", optimizer_settings=SGD.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """All layers by each rule, and the head by whichever is best."""
        published = {"sgd": (table_1((28.86, 0.54), (49.79, 0.79)),)}
        by_rule = [
            Row(
                f"finetune-{name}",
                f"{cls.label}, {rule.label}",
                changes={"rules": (name,)},
                published=published.get(name, ()),
            )
            for name, rule in RULES.items()
        ]
        changes = {"rules": tuple(RULES), "moves": "head"}
        return (*by_rule, Row("finetune-head", f"{cls.label}, head only", changes=changes))

    def tune(self, tuning: Tuning) -> dict[str, Any]:
        """The rule, its settings and the number of steps that are best on meta-val."""
        method = self.remembering()
        choices = [
            Choice(**tuning.keep(rule, lambda rule=rule: asdict(tune_rule(rule, method, tuning))))
            for rule in self.settings.rules
        ]
        best = max(choices, key=lambda choice: choice.meta_val)
        return {
            "settings": replace(self.settings, epochs=best.steps, few_shot_epochs=None, batch_size=None),
            "optimizer": best.rule,
            "optimizer_settings": RULES[best.rule].Settings(best.rate, best.decay),
            "chosen": asdict(best),
        }
