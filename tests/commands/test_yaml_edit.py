"""Changes of a configuration's text keep its comments, its order, and every line that they do not concern."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import yaml

from commands.wiring.yaml_edit import ConfigEdit, ListChange, edit_yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
# top
sources:
  - uri: "line:" # a line
    name: a

  # second
  - 'line:?seed=2'   # b

# the guards
guards:
  regions:
    - name: belt # where parts pass
      polygon: [[0, 0], [1, 0], [1, 1]] # a triangle
  # what must hold
  rules:
    - name: x
      rule: score > 0.5   # odd
      hold_seconds: 0.30

# sinks here
sinks:
  - http://127.0.0.1:8000 # page
"""
RULES = """\
guards:
  rules:
  # first
  - name: a
    rule: score > 0.1
  # second
  - name: b
    rule: score > 0.2
  # third
  - name: c
    rule: score > 0.3

# end
sinks: []
"""
SQUARE = [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]


def changed(edit, text=TEXT):
    """Return the new text, and the lines that were removed and added."""
    after = edit_yaml(text, edit)
    lines = list(difflib.ndiff(text.splitlines(), after.splitlines()))
    return after, [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_text_without_a_difference_is_the_same(path):
    text = path.read_text()
    values = yaml.safe_load(text)
    rules = values.get("guards", {}).get("rules", [])
    shown = ListChange([{**rule, "index": index} for index, rule in enumerate(rules)], frozenset(range(len(rules))))
    assert edit_yaml(text, ConfigEdit(0, {"roi": None, "mask": []}, guards={"rules": shown})) == text


def test_value_of_an_entry_is_replaced_in_its_line():
    wanted = [{"index": 0, "name": "x", "rule": "score > 0.6", "hold_seconds": 0.3}]
    _, removed, added = changed(ConfigEdit(0, guards={"rules": ListChange(wanted, frozenset([0]))}))
    assert removed == ["      rule: score > 0.5   # odd"]
    assert added == ["      rule: score > 0.6   # odd"]


def test_new_entries_stand_before_the_comment_of_the_next_key():
    region = ListChange([{"index": 0, "name": "belt", "polygon": [[0, 0], [1, 0], [1, 1]]},
                         {"name": "door", "polygon": SQUARE}], frozenset([0]))  # fmt: skip
    rules = ListChange([{"index": 0, "name": "x", "rule": "score > 0.5", "hold_seconds": 0.3},
                        {"name": "y", "rule": "heat_inside(door) >= 0.5", "cameras": ["a"]}],
                       frozenset([0]))  # fmt: skip
    after, removed, added = changed(ConfigEdit(0, guards={"regions": region, "rules": rules}))
    assert removed == []
    assert added == [
        "    - name: door",
        "      polygon: [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]",
        "    - name: y",
        "      rule: heat_inside(door) >= 0.5",
        "      cameras: [a]",
    ]
    assert after.index("name: door") < after.index("# what must hold")
    assert after.index("name: y") < after.index("# sinks here")


@pytest.mark.parametrize("name", ["on", "no", "12:30", "1e3", "a#b", "-", "{a}", "a\x85b", "a\u2028b"])
def test_text_is_written_so_that_it_is_read_as_text(name):
    after, _, _ = changed(ConfigEdit(0, guards={"rules": ListChange([{"name": name}], frozenset())}))
    assert yaml.safe_load(after)["guards"]["rules"][-1] == {"name": name}


def test_removed_entries_leave_the_comments_of_their_neighbours():
    text = RULES
    third = [{"index": 2, "name": "c", "rule": "score > 0.3"}]
    for kept, shown in (([], {0, 1, 2}), (third, {0, 1, 2}), ([], {1}), ([], {2})):
        after, _, added = changed(ConfigEdit(0, guards={"rules": ListChange(kept, frozenset(shown))}), text)
        names = [name for index, name in enumerate("abc") if index not in shown or (kept and index == 2)]
        assert [rule["name"] for rule in yaml.safe_load(after)["guards"]["rules"]] == names
        assert "# third" in after
        assert "# end\nsinks: []\n" in after
        assert len(added) <= 1


def test_source_that_is_a_text_becomes_a_map_with_its_comment():
    after, removed, added = changed(ConfigEdit(1, {"roi": [0.1, 0.2, 0.5, 0.5], "mask": [SQUARE]}))
    assert removed == ["  - 'line:?seed=2'   # b"]
    assert added == [
        "  - uri: 'line:?seed=2' # b",
        "    roi: [0.1, 0.2, 0.5, 0.5]",
        "    mask: [[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]]",
    ]
    assert "# the guards" in after
    back = edit_yaml(after, ConfigEdit(1, {"roi": None, "mask": []}))
    assert yaml.safe_load(back)["sources"][1] == {"uri": "line:?seed=2"}
    assert "# the guards\nguards:" in back


@pytest.mark.parametrize("sources", ["'line:'", "[line:]", "\n  uri: 'line:'", "\n  - {uri: 'line:'} # c"])
def test_area_and_zones_are_added_to_every_form_of_a_source(sources):
    text = f"sources: {sources}\nsinks: [a.jsonl] # s\n"
    zones = ListChange([{"name": "z", "polygon": SQUARE}], frozenset())
    after = edit_yaml(text, ConfigEdit(0, {"roi": [1, 2, 30, 40]}, {"zones": zones}))
    (source,) = yaml.safe_load(after)["sources"]
    assert source == {"uri": "line:", "roi": [1, 2, 30, 40], "zones": [{"name": "z", "polygon": SQUARE}]}
    assert "sinks: [a.jsonl] # s\n" in after


def test_guards_are_added_to_a_text_that_has_none():
    rule = ListChange([{"name": "y", "rule": "score >= 0.5"}], frozenset())
    after = edit_yaml("sources: [a.mp4]\n# end\n", ConfigEdit(0, guards={"rules": rule}))
    assert yaml.safe_load(after)["guards"] == {"rules": [{"name": "y", "rule": "score >= 0.5"}]}
    assert "# end" in after
