"""The file of the highest term that a machine has followed."""

import pytest

from commands.fleet.term_file import TermFile, default_term_file


def test_term_file_returns_the_highest_written_term_to_later_processes(tmp_path):
    path = tmp_path / "state" / "fleet.term"
    first, other = TermFile(path), TermFile(path)
    assert first.read() == 0
    first.write(1_700_000_005)
    other.write(1_700_000_003)
    assert TermFile(path).read() == 1_700_000_005


@pytest.mark.parametrize("content", [b"", b"x", b"-3", b"1e9", b"\xff\xfe", b"99999999999999999999"])
def test_damaged_term_file_counts_as_missing_and_is_replaced(tmp_path, content):
    path = tmp_path / "fleet.term"
    path.write_bytes(content)
    file = TermFile(path)
    assert file.read() == 0
    file.write(7)
    assert file.read() == 7


def test_term_file_that_cannot_be_written_is_logged_once_with_the_consequence(tmp_path, caplog):
    (tmp_path / "state").write_text("a file in place of the folder")
    file = TermFile(tmp_path / "state" / "fleet.term")
    file.write(1)
    file.write(2)
    [message] = [record.getMessage() for record in caplog.records]
    assert "fleet.term: cannot be written" in message
    assert "viewers drop frames" in message


def test_each_fleet_has_a_term_file_in_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_term_file("north/a").parent == default_term_file("south").parent == tmp_path / "recipro-stream"
    assert default_term_file("north/a") != default_term_file("south")
