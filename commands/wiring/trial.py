"""Builds the second network of a run, which is compared with the first ("on trial")."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.ports import Explainer
from pipeline.trial import Comparison, TimeBound, TrialExplainer

if TYPE_CHECKING:
    from engine.explainers.base import EngineExplainer

log = logging.getLogger("recipro-stream")


def add_trial(
    config: Config, guarded: Explainer, first: EngineExplainer, drops_frames: Callable[[str], bool]
) -> TrialExplainer | None:
    """Return an explainer that also runs the network on trial; None if the configuration has no such network.

    Args:
        config: the configuration of the run.
        guarded: the first network with its guards.
        first: the first network.
        drops_frames: returns whether a camera's queue drops its oldest frames when the networks are too slow.

    Raises:
        ConfigError: the two networks cannot be compared.
        ReciproStreamError: the second network cannot be built.
    """
    from commands.wiring.run import make_explainer

    if not config.models:
        return None
    [trial] = config.models
    second = make_explainer(config.model_copy(update={"engine": trial}), draws=False)
    check_comparable(first, second)
    log.info("on trial as %s: %s", trial.title, second.info)
    comparison = Comparison(trial.max_score_difference, trial.min_box_score)
    return TrialExplainer(guarded, second, trial.title, comparison, TimeBound(trial.max_time_ratio, drops_frames))


def check_comparable(first: EngineExplainer, second: EngineExplainer) -> None:
    """Check that two networks are of the same kind and share at least one class.

    Raises:
        ConfigError: the networks cannot be compared.
    """
    names = first.info.model, second.info.model
    if (first.box_mode is None) != (second.box_mode is None):
        kinds = ["classifier" if each.box_mode is None else "detector" for each in (first, second)]
        raise ConfigError(
            f"models: {names[0]} is a {kinds[0]} and {names[1]} is a {kinds[1]}: only networks of one kind can be "
            "compared; choose another"
        )
    if set(first.labels).isdisjoint(second.labels):
        raise ConfigError(
            f"models: {names[0]} and {names[1]} have no class in common, so they would differ in every frame; choose "
            "a network of the same classes, or set its class names by labels"
        )
