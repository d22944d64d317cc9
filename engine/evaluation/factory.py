"""A network and its settings to an examiner, ready to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from engine.evaluation.evaluator import ClassMapping, Evaluator
from engine.methods.registry import find_method
from engine.models.loader import LoadedModel, class_names
from engine.split.network import split_network
from pipeline.config import EngineConfig


@dataclass(frozen=True)
class EvaluationOptions:
    """What is to be measured beside the score that is lost."""

    method: str = "recipro-cam"
    """What is examined: a name of ``engine.methods.registry``."""
    steps: int = 28
    """In how many parts Deletion and Insertion move the pixels; 0 = leave both out."""
    randomize: bool = True
    """Whether the randomised-weights check is made."""
    any_box: bool = False
    """Whether every box counts, whatever its class."""
    class_map: Mapping[str, list[int]] = field(default_factory=dict)
    """Box class -> the network's classes it stands for."""


def build_evaluator(network: LoadedModel, config: EngineConfig, wanted: EvaluationOptions) -> Evaluator:
    """Cut the network and prepare what is wanted; it runs in float32, eager, on the CPU.

    Raises:
        ConfigError, EngineError: an unknown method, or one whose package is missing.
        LayerError, EngineError: the network cannot be cut at this layer, or takes no input of this size.
    """
    method = find_method(wanted.method, config.kernel)
    if config.threads:
        torch.set_num_threads(config.threads)
    preprocessing = network.preprocessing(config)
    split = split_network(network.module, config.layer or network.layer, preprocessing.input_size)
    knowledge = ClassMapping(class_names(network, split.classes), dict(wanted.class_map), wanted.any_box)
    evaluator = Evaluator(split, preprocessing, method, knowledge, steps=wanted.steps)
    if wanted.randomize:
        evaluator.enable_randomization_check(network.module)
    return evaluator
