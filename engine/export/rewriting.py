"""Leaves out a rewrite rule of onnxscript that takes as long as all other steps of an export together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_QUADRATIC_RULES: Final = frozenset({"SlicesSplit"})


@contextmanager
def without_quadratic_rules() -> Iterator[None]:
    """Leave out the rules of onnxscript whose time grows with the square of the number of nodes.

    ``torch.onnx.export`` tries each default rule on each node. onnxscript lists all nodes of the graph at each try of a
    rule that replaces more than one output; ``SlicesSplit``, which joins two slices, is the only one. The file then has
    two slices in place of one split.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", None)
    if rules is None:  # another version of onnxscript
        yield
        return
    rewriter._DEFAULT_REWRITE_RULES = tuple(  # noqa: SLF001 - no argument of the export selects rules
        rule for rule in rules if getattr(rule, "name", None) not in _QUADRATIC_RULES
    )
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules  # noqa: SLF001
