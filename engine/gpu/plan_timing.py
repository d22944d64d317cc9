"""Chooses a plan by timing, because multiply-adds predict the time of masked maps on a GPU badly."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from engine.gpu.streams import device_streams
from engine.methods.dense import DensePlan
from engine.methods.kernels import Kernel
from engine.methods.plan import Plan
from engine.runtime.devices import channels_last

log = logging.getLogger(__name__)

_ROUNDS: Final = 3


def select_by_timing(plan: Plan, tail: nn.Module, kernel: Kernel, features: Tensor, budget_bytes: int) -> Plan:
    """Return the faster of a local plan and the dense plan within the budget; other plans unchanged.

    Args:
        plan: the plan chosen by multiply-adds.
        tail: the network after the split, on the host.
        kernel: the masks.
        features: one image's feature map on the device, in the plan's dtype.
        budget_bytes: memory budget of masked maps.
    """
    if plan.info.name != "local":
        return plan
    dense = DensePlan(tail, kernel, "measured", budget_bytes)
    seconds = {}
    for candidate in (plan, dense):
        placed = copy.deepcopy(candidate).to(features.device, features.dtype)
        channels_last(placed)
        try:
            seconds[candidate.info.name] = _seconds(placed, features)
        except RuntimeError as reason:  # out of memory, or an operation that the device lacks
            log.warning("the %s plan does not run on %s: %s", candidate.info.name, features.device, reason)
            seconds[candidate.info.name] = float("inf")
    local, direct = seconds["local"], seconds["dense"]
    measured = f"measured on {features.device}: local {1e3 * local:.2f} ms per image, dense {1e3 * direct:.2f} ms"
    log.info("%s", measured)
    chosen = plan if local <= direct else dense
    chosen.info = replace(chosen.info, reason=measured, layer=plan.info.layer, grid=plan.info.grid)
    return chosen


def _seconds(plan: Plan, features: Tensor) -> float:
    """Return the median seconds per image, with a captured graph if possible."""
    streams, times = device_streams(features.device), []
    if features.is_cuda:
        torch.cuda.synchronize(features.device)  # they were allocated on another stream
    with torch.inference_mode(), streams.stream("compute"):
        call = streams.capture_graph(lambda: plan(features), f"the {plan.info.name} plan")
        for _ in range(_ROUNDS + 1):
            started_at = time.perf_counter()
            call()
            streams.synchronize(streams.record_event("compute"))
            times.append(time.perf_counter() - started_at)
    return statistics.median(times[1:])
