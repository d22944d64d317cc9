"""What looks wrong at the start though it is allowed: said once each, with the remedy, before the first frame.

Each check is a function of what a run is made of, and gives sentences; a new one is one function and one line here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.config import Config
from pipeline.log_format import escaped

log = logging.getLogger("recipro-stream")


def warn_of_doubts(config: Config, labels: Sequence[str]) -> None:
    """Log every doubt about a run that is about to begin."""
    for doubt in dict.fromkeys([*doubts_of_labels(labels), *doubts_of_guards(config)]):
        log.warning("%s", doubt)


def doubts_of_labels(labels: Sequence[str]) -> Iterator[str]:
    """Give what looks wrong about a network's class names."""
    if len(labels) == 1:
        yield (
            f"the network has one class, {labels[0]!r}: its score is 1 whatever is seen; give a network that tells two "
            "or more apart"
        )
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        named = ", ".join(map(repr, twice[:3])) + (", ..." if len(twice) > 3 else "")
        yield (
            f"labels: {named} stands for more than one class; a rule, a record or a target by that name means each or "
            "the first of them; give each class a name of its own with --labels FILE"
        )
    odd = [label for label in labels if label != label.strip() or escaped(label) != label or not label]
    if odd:
        yield (
            f"labels: {odd[0]!r} is empty, or holds characters that are not seen; a rule by the name as it looks never "
            "applies; save the file of labels as plain UTF-8, one name a line"
        )


def doubts_of_guards(config: Config) -> Iterator[str]:
    """Give what looks wrong about guards and what they are asked of."""
    used = {region for rule in config.guards.rules for region in rule.parsed.regions}
    recorded = " ".join(getattr(sink, "record_when", None) or "" for sink in config.sinks)
    for region in config.guards.regions:
        if region.name not in used and region.name not in recorded and config.guards.draw == "never":
            yield f"guards.regions: {region.name!r} is neither drawn nor named by a rule; name it in one, or draw it"
