"""Builds an evaluator from a network and its settings."""

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
    """Method and optional measurements of an evaluation."""

    method: str = "recipro-cam"
    """The explanation method: a name in ``engine.methods.registry``."""
    steps: int = 28
    """Number of steps of Deletion and Insertion; 0: not measured."""
    randomize: bool = True
    """True: run the check with randomised weights."""
    any_box: bool = False
    """True: count every box, regardless of its class."""
    class_map: Mapping[str, list[int]] = field(default_factory=dict)
    """Box class -> corresponding network classes."""


def build_evaluator(network: LoadedModel, config: EngineConfig, options: EvaluationOptions) -> Evaluator:
    """Split the network and build its evaluator: float32, eager PyTorch, on the CPU.

    Raises:
        ConfigError, EngineError: the method is unknown, or its package is missing.
        LayerError, EngineError: the network cannot be split at this layer, or does not accept this input size.
    """
    method = find_method(options.method, config.kernel)
    if config.threads:
        torch.set_num_threads(config.threads)
    preprocessing = network.preprocessing(config)
    split = split_network(network.module, config.layer or network.layer, preprocessing.input_size)
    knowledge = ClassMapping(class_names(network, split.classes), dict(options.class_map), options.any_box)
    evaluator = Evaluator(split, preprocessing, method, knowledge, steps=options.steps)
    if options.randomize:
        evaluator.enable_randomization_check(network.module)
    return evaluator
