"""How much each setting of a sweep matters for its result, by Optuna's fANOVA."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmstune.config.compare_by import is_number
from fmstune.runs.report.charts import spans_decades
from fmstune.runs.report.ranking import Column, Group, short_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEAST = 6
"""Settings with a result below which no importance is given."""


def setting_importances(columns: Sequence[Column], scored: Sequence[Group]) -> dict[str, float]:
    """Return each setting's share of the variance of the results, the largest first; empty without Optuna.

    Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", 2014.
    """
    differing = {
        column.name: index
        for index, column in enumerate(columns)
        if len({short_value(group.values[index]) for group in scored}) > 1
    }
    if len(differing) < 2 or len(scored) < LEAST or len({group.mean for group in scored}) == 1:
        return {}
    if importlib.util.find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _distribution([group.values[index] for group in scored]) for name, index in differing.items()}
    study = optuna.create_study(direction="minimize")
    for group in scored:
        params = {name: _choice(space[name], group.values[index]) for name, index in differing.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=group.mean))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _distribution(values: Sequence[Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(map(is_number, values)):
        return FloatDistribution(min(values), max(values), log=spans_decades(values))
    return CategoricalDistribution(sorted({short_value(value) for value in values}))


def _choice(space: "BaseDistribution", value: Any) -> Any:
    return value if type(space).__name__ == "FloatDistribution" else short_value(value)
