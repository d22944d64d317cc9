"""Checks a rule that a user types on the page, and returns the YAML that the page offers to copy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.guards.config import GuardConfig, GuardsConfig, RegionConfig, check_boxes, check_cameras, check_labels
from pipeline.guards.lexer import ConditionError
from pipeline.guards.parser import parse_rule

if TYPE_CHECKING:
    from commands.wiring.run import OpenRun

MAX_REGIONS: Final = 100
"""Maximum number of regions in one request."""
_KEYS = ("hold_seconds", "clear_seconds", "margin")


def check_rule(
    rule: Mapping[str, Any], regions: Sequence[Mapping[str, Any]], camera: str, run: OpenRun
) -> tuple[GuardConfig, list[RegionConfig]]:  # fmt: skip
    """Validate a rule and its regions for one camera, and return them as settings.

    Args:
        rule: the key ``rule`` with the text, and optionally ``hold_seconds``, ``clear_seconds`` and ``margin``.
        regions: each with ``name`` and ``polygon``.
        camera: name of the camera.
        run: the run, with the classes of its network.

    Raises:
        ConditionError: the rule cannot be parsed or uses an unknown name; has the position in the text.
        ConfigError: another value is invalid.
    """
    text = rule.get("rule")
    if not isinstance(text, str):
        raise ConfigError("rule: give a text")
    if len(regions) > MAX_REGIONS:
        raise ConfigError(f"regions: {len(regions)}; give at most {MAX_REGIONS}")
    parse_rule(text)
    values = {key: rule[key] for key in _KEYS if rule.get(key) is not None}
    try:
        placed = [RegionConfig(name=each.get("name", ""), polygon=each.get("polygon", [])) for each in regions]
        guard = GuardConfig(name="rule", rule=text, **values)
        guards = GuardsConfig(regions=placed, rules=[guard])
        check_cameras(guards, [camera])
        check_labels(guards, run.places.labels)
        if not run.places.has_boxes:
            check_boxes(guards)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise _placed(text, message if not where or "rules[" in message else f"{where}: {message}") from None
    except ConfigError as error:
        raise _placed(text, str(error)) from None
    return guard, placed


def _placed(text: str, message: str) -> ConfigError:
    """Return the error of a rule, without the prefix that the page already shows.

    If the message names a position or a word of the rule, the error is a ``ConditionError`` with that position.
    """
    message = message.removeprefix("guards.").removeprefix(f"rules[0].rule: {text!r}: ")
    if match := re.match(r"character (\d+)", message):
        return ConditionError(message, int(match[1]) - 1)
    named = re.match(r"'([^']+)'|(\w+) exists only", message)
    position = text.find(named[1] or named[2]) if named else -1
    return ConditionError(message, position) if position >= 0 else ConfigError(message)


def fragment(config: Config, position: int | None, camera: str) -> str:
    """Return the settings that the page can change as YAML, without source URIs.

    Args:
        config: the configuration.
        position: position of the camera's source; None omits the source.
        camera: name of the camera.
    """
    shown: dict[str, Any] = {}
    if position is not None:
        keys = {"roi", "mask", "zones", "lines"}
        source = config.sources[position].model_dump(mode="json", exclude_unset=True, include=keys)
        shown = {"sources": [{"name": camera, **source}]} if source else {}
    guards = config.guards.model_dump(mode="json", exclude_unset=True, include={"regions", "rules"})
    if guards:
        shown["guards"] = guards
    return _text(shown) if shown else ""


class _Dumper(yaml.SafeDumper):
    """Writes a list without mappings, such as a list of numbers, on one line."""


def _list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flow = not any(isinstance(each, dict) for each in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _list)


def _text(value: object) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text
