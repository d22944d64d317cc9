"""Logs warnings about configurations that are valid but probably wrong, before the first frame.

Each check is a function that yields warnings with a remedy. ``warn_of_doubts`` calls all checks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from pipeline.config import Config
from pipeline.log_format import escaped

log = logging.getLogger("recipro-stream")

_UNUSED: Final = "N/A"
"""Name of the outputs that no class of COCO uses, in networks with 91 outputs."""


def warn_of_doubts(config: Config, labels: Sequence[str], *, exclusive: bool = True) -> None:
    """Log all warnings about a run before it starts.

    Args:
        config: the configuration of the run.
        labels: the network's class names.
        exclusive: whether the scores of all classes add up to 1; False for a detector.
    """
    for doubt in dict.fromkeys([*doubts_of_labels(labels, exclusive=exclusive), *doubts_of_guards(config)]):
        log.warning("%s", doubt)


def doubts_of_labels(labels: Sequence[str], *, exclusive: bool = True) -> Iterator[str]:
    """Yield warnings about the network's class names."""
    if len(labels) == 1 and exclusive:
        yield (f"the network has one class, {labels[0]!r}: its score is always 1; give a network with at least two")
    twice = [label for label, count in Counter(labels).items() if count > 1 and label != _UNUSED]
    if twice:
        duplicates = ", ".join(map(repr, twice[:3])) + (", ..." if len(twice) > 3 else "")
        yield (
            f"labels: {duplicates} stands for more than one class; a rule, record or target with this name means all "
            "of them or the first; give each class its own name with --labels FILE"
        )
    odd = [label for label in labels if label != label.strip() or escaped(label) != label or not label]
    if odd:
        yield (
            f"labels: {odd[0]!r} is empty or has invisible characters, so a rule that is typed as the name looks never "
            "applies; save the labels file as plain UTF-8, one name per line"
        )


def doubts_of_guards(config: Config) -> Iterator[str]:
    """Yield warnings about regions that no rule uses."""
    used = {region for rule in config.guards.rules for region in rule.parsed.regions}
    recorded = " ".join(getattr(sink, "record_when", None) or "" for sink in config.sinks)
    for region in config.guards.regions:
        if region.name not in used and region.name not in recorded and config.guards.draw == "never":
            yield (
                f"guards.regions: {region.name!r} is not used: no rule names it and it is not drawn; use it in a "
                "rule, or draw it"
            )
