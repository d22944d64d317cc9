"""A network and its settings to an examiner, ready to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from engine.evaluation.examiner import Examiner, Knowledge, recipro
from engine.methods.kernels import check_kernel
from engine.networks import Network, class_names
from engine.preprocess import Preprocessing
from engine.split import split_network
from pipeline.config import EngineConfig


@dataclass(frozen=True)
class Wanted:
    """What is to be measured beside the score that is lost."""

    steps: int = 28
    """In how many parts Deletion and Insertion move the pixels; 0 = leave both out."""
    randomised: bool = True
    """Whether the randomised-weights check is made."""
    any_box: bool = False
    """Whether every box counts, whatever its class."""
    meaning: Mapping[str, list[int]] = field(default_factory=dict)
    """Box class -> the network's classes it stands for."""


def build_examiner(network: Network, config: EngineConfig, wanted: Wanted) -> Examiner:
    """Cut the network and prepare what is wanted; it runs in float32, eager, on the CPU.

    Raises:
        LayerError, EngineError: the network cannot be cut at this layer, or takes no input of this size.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    size = config.input_size or network.input_size
    preprocessing = Preprocessing(size, config.mean or network.mean, config.std or network.std, config.fit)
    split = split_network(network.net, config.layer or network.layer, size)
    knowledge = Knowledge(class_names(network, split.classes), dict(wanted.meaning), wanted.any_box)
    method = recipro(check_kernel(config.kernel))
    examiner = Examiner(split, preprocessing, method, knowledge, steps=wanted.steps)
    if wanted.randomised:
        examiner.with_strange_weights(network.net)
    return examiner
