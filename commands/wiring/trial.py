"""Builds the second network of a run, which is on trial."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.ports import Explainer
from pipeline.trial import Comparison, TrialExplainer

if TYPE_CHECKING:
    from engine.explainers.base import EngineExplainer

log = logging.getLogger("recipro-stream")


def add_trial(config: Config, guarded: Explainer, first: EngineExplainer) -> TrialExplainer | None:
    """Return the explainer with the network on trial beside it; None where the configuration has none.

    Args:
        config: the run.
        guarded: the first network with its guards.
        first: the first network.

    Raises:
        ConfigError: the two cannot be compared.
        ReciproStreamError: the second cannot be built.
    """
    from commands.wiring.run import make_explainer

    if not config.models:
        return None
    [trial] = config.models
    second = make_explainer(config.model_copy(update={"engine": trial}), draws=False)
    if (first.box_mode is None) != (second.box_mode is None):
        kinds = [f"{name} is a {'classifier' if each.box_mode is None else 'detector'}"
                 for name, each in ((config.engine.model, first), (trial.model, second))]  # fmt: skip
        raise ConfigError(f"models: {' and '.join(kinds)}: only networks of one kind can be compared; choose another")
    if set(first.labels).isdisjoint(second.labels):
        raise ConfigError(
            f"models: {trial.model} and {config.engine.model} have no class in common, so they would differ in every "
            "frame; choose a network of the same classes, or give it their names by labels"
        )
    log.info("on trial as %s: %s", trial.title, second.info)
    return TrialExplainer(guarded, second, trial.title, Comparison(trial.max_score_difference, trial.min_box_score))
