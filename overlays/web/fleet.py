"""HTTP handlers of a fleet's page: the workers that publish its cameras, and the scrape targets for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from overlays.web.event_requests import RequestError
from pipeline.fleet.places import metrics_targets

NO_FLEET = "this page belongs to no fleet; run.py fleet gateway serves one that does"


@runtime_checkable
class FleetAccess(Protocol):
    """The interface of a gateway that the page uses. Any thread may call it."""

    def fleet_state(self) -> dict[str, Any] | None:
        """Return the last received state of the fleet; None before the first."""

    def fleet_age_seconds(self) -> float:
        """Return the time since the last state was received, in seconds."""

    @property
    def problem(self) -> str:
        """The reason why there is no recent state; empty if there is one."""


@dataclass(slots=True)
class FleetState:
    """The fleet of the page's run."""

    access: FleetAccess | None = None
    """The gateway; None if the page does not belong to a fleet."""


class FleetHandlers:
    """Handlers of ``/api/where`` and ``/api/targets``."""

    def __init__(self, fleet: Callable[[], FleetState]) -> None:
        """Set the function that returns the current fleet of the page's run."""
        self._fleet = fleet

    async def where(self, request: Request) -> Response:
        """Return the worker and address that publish a camera, or those of all cameras."""
        state, age = self._state()
        name = request.path_params.get("camera")
        if name is None:
            return JSONResponse({"cameras": state["cameras"], "age_seconds": age})
        found = next((camera for camera in state["cameras"] if camera["camera"] == name), None)
        if found is None:
            raise RequestError(404, f"the fleet has no camera {name[:80]!r}; /api/where lists them")
        return JSONResponse(found | {"age_seconds": age})

    async def targets(self, _request: Request) -> Response:
        """Return the workers' metrics addresses in the format of Prometheus' ``http_sd_configs``."""
        return JSONResponse(metrics_targets(self._state()[0]))

    def _state(self) -> tuple[dict[str, Any], float]:
        access = self._fleet().access
        if access is None:
            raise RequestError(404, NO_FLEET)
        state = access.fleet_state()
        if state is None:  # after an error response, Prometheus keeps its current targets
            raise RequestError(503, access.problem)
        return state, round(access.fleet_age_seconds(), 3)
