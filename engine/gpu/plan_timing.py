"""Which plan is cheaper on this very device: multiply-adds say little of a card that does many maps in one go."""

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
    """Return a local plan, or the definition in chunks within the budget, whichever answers sooner; others as they are.

    Args:
        plan: what was chosen by counting.
        tail: the network behind the cut, on the host.
        kernel: the masks.
        features: one image's feature map on the device, in the type the plan will run in.
        budget_bytes: what masked maps may take.
    """
    if plan.info.name != "local":
        return plan
    dense = DensePlan(tail, kernel, "measured", budget_bytes)
    seconds = {}
    for one in (plan, dense):
        placed = copy.deepcopy(one).to(features.device, features.dtype)
        channels_last(placed)
        try:
            seconds[one.info.name] = _seconds(placed, features)
        except RuntimeError as reason:  # out of memory, an operation the device does not have
            log.warning("the %s plan does not run on %s: %s", one.info.name, features.device, reason)
            seconds[one.info.name] = float("inf")
    local, direct = seconds["local"], seconds["dense"]
    told = f"measured on {features.device}: local {1e3 * local:.2f} ms an image, dense {1e3 * direct:.2f} ms"
    log.info("%s", told)
    chosen = plan if local <= direct else dense
    chosen.info = replace(chosen.info, reason=told, layer=plan.info.layer, grid=plan.info.grid)
    return chosen


def _seconds(plan: Plan, features: Tensor) -> float:
    """Return the median time of one image, as frames will meet the plan: captured as a graph where that can be."""
    streams, taken = device_streams(features.device), []
    if features.is_cuda:
        torch.cuda.synchronize(features.device)  # they were made on another stream
    with torch.inference_mode(), streams.stream("compute"):
        call = streams.capture_graph(lambda: plan(features), f"the {plan.info.name} plan")
        for _ in range(_ROUNDS + 1):
            started_at = time.perf_counter()
            call()
            streams.synchronize(streams.record_event("compute"))
            taken.append(time.perf_counter() - started_at)
    return statistics.median(taken[1:])
