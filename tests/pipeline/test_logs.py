"""Log lines and terminal output escape text from outside."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.console import format_error, print_line
from pipeline.log_format import escaped, make_formatter

FOREIGN = "door\nW forged\r\x1b[2J\x9b31m\u202eevil\u2028line\x85\x00\ud800\x7f"


def record(message, error=None):
    return logging.LogRecord("stream", logging.WARNING, "f.py", 1, "%s", (message,), error)


def unseen(text):
    return [letter for letter in text if unicodedata.category(letter) in {"Cc", "Zl", "Zp", "Cs"} or letter == "\u202e"]


@given(st.text())
def test_escaped_replaces_control_characters_alone(text):
    shown = escaped(text)
    assert unseen(shown) == []
    assert [c for c in text if c.isprintable()] == [c for c in shown if c.isprintable()][: len(shown)] or "\\" in shown


def test_text_formatter_keeps_a_message_on_one_line():
    line = make_formatter("text").format(record(FOREIGN))
    assert line.startswith("W door\\nW forged\\r\\x1b[2J")
    assert unseen(line) == []


def test_json_formatter_keeps_a_message_on_one_line_and_unchanged():
    line = make_formatter("json").format(record(FOREIGN))
    assert unseen(line) == []
    assert json.loads(line)["message"] == FOREIGN


@pytest.mark.parametrize("kind", ["text", "json"])
def test_formatters_escape_tracebacks(kind):
    try:
        {}[FOREIGN]
    except KeyError:
        line = make_formatter(kind).format(record("broke", sys.exc_info()))
    assert set(unseen(line)) <= {"\n"}
    assert "Traceback" in line


def test_console_escapes_text_from_outside(capsys):
    print_line("seen: \x1b[31mred\u202e\nnext")
    assert capsys.readouterr().out == "seen: \\x1b[31mred\\u202e\nnext\n"
    assert format_error("bad \x1b]0;title\x07\nsecond") == "error: bad \\x1b]0;title\\x07\nerror: second"
