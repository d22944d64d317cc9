"""Rules of onnxscript that are left out of an export: those that cost as much as all other steps together."""

from __future__ import annotations

import pytest
from onnxscript import rewriter

from engine.export.rewriting import without_quadratic_rules


def test_export_tries_only_rules_whose_time_grows_with_the_number_of_nodes():
    before = rewriter._DEFAULT_REWRITE_RULES
    assert not all(rule._target_pattern.has_single_output_node for rule in before)
    with without_quadratic_rules():
        tried = rewriter._DEFAULT_REWRITE_RULES
        assert all(rule._target_pattern.has_single_output_node for rule in tried)
        assert {rule.name for rule in before} - {rule.name for rule in tried} == {"SlicesSplit"}
    assert rewriter._DEFAULT_REWRITE_RULES is before


def test_rules_are_complete_again_after_an_export_that_fails():
    before = rewriter._DEFAULT_REWRITE_RULES
    with pytest.raises(ValueError, match="no graph"), without_quadratic_rules():
        raise ValueError("no graph")
    assert rewriter._DEFAULT_REWRITE_RULES is before
