"""A page and another program change one configuration: no change is lost, and the page resolves the conflict."""

from __future__ import annotations

import pytest

from commands.wiring.text_difference import difference
from pipeline.errors import ConfigError, SetupConflictError
from tests.support.camera_setup import TEXT, made, with_corner


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


def test_change_of_a_file_that_another_program_changed_is_refused_with_the_difference(path):
    setup, run = made(path)
    wanted = with_corner(setup.read("left"))
    path.write_text(TEXT.replace("user:secret", "user:other"))
    with pytest.raises(SetupConflictError, match=r"run.yaml: was changed meanwhile") as refused:
        setup.change("left", wanted)
    assert "+  - {uri: 'rtsp://***@10.0.0.9/x', name: right}" in refused.value.difference
    assert "other" not in refused.value.difference
    with pytest.raises(SetupConflictError, match="somebody else"):
        setup.change("left", {**wanted, "revision": "0"})
    assert run.applied == []


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://user:pa'SECRET@10.0.0.9/x",
        "rtsp://user:pa SECRET@10.0.0.9/x",
        '"rtsp\\x3a//user:SECRET@10.0.0.9/x"',
        "'rtsp://us''er:SECRET@10.0.0.9/x'",
        '"rtsp://user:\\\n   SECRET\\\n   @10.0.0.9/x"',
        "# once rtsp://user:SECRET@10.0.0.9/x",
        "}\n- rtsp://user:pa SECRET@10.0.0.9/x",
    ],
)
def test_difference_of_a_configuration_never_holds_a_password(address):
    text = f"sources: [line]\nname: {address}\nend: 1\n"
    for shown in (difference("end: 1\n", text, "x"), difference(text, "end: 1\n", "x")):
        assert "SECRET" not in shown
        assert "line" in shown


def test_file_written_while_a_change_is_applied_is_kept(path):
    setup, run = made(path)
    foreign = TEXT.replace("# the end", "# somebody else")
    apply = run.apply

    def apply_slowly(config):
        path.write_text(foreign)
        return apply(config)

    run.apply = apply_slowly
    with pytest.raises(SetupConflictError, match="meanwhile") as refused:
        setup.change("left", with_corner(setup.read("left")))
    assert "+# somebody else" in refused.value.difference
    assert path.read_text() == foreign
    assert run.applied[-1].guards.rules[0].rule == "heat_inside(belt) >= 0.6", "the former configuration runs again"


def test_part_that_an_alias_shares_is_left_to_its_author(path):
    text = "sources:\n  - &a {uri: 'line:'}\n  - <<: *a\n    name: b\n"
    setup, run = made(path, text)
    camera = "line"
    with pytest.raises(ConfigError, match="alias"):
        setup.change(camera, {"revision": setup.read(camera)["revision"], "roi": [0, 0, 0.5, 0.5]})
    assert (run.applied, path.read_text()) == ([], text)


def refused_revision(setup, wanted):
    with pytest.raises(SetupConflictError) as refused:
        setup.change("left", wanted)
    return refused.value.file_revision


def test_file_of_another_program_is_applied_when_a_page_asks_for_it(path):
    setup, run = made(path)
    wanted = with_corner(setup.read("left"))
    foreign = TEXT.replace("0.6", "0.55").replace("# the end", "engine: {threads: 1}")
    path.write_text(foreign)
    revision = refused_revision(setup, wanted)
    path.write_text(foreign + "# once more\n")
    with pytest.raises(SetupConflictError, match="Apply the file first") as refused:
        setup.apply_file("left", revision)
    assert run.applied == [], "that is not the text that the page showed"
    after = setup.apply_file("left", refused.value.file_revision)
    assert after["rules"][0]["rule"] == "heat_inside(belt) >= 0.55"
    assert not after["can_undo"]
    again = setup.change("left", {**wanted, "revision": after["revision"]})
    assert (len(again["rules"]), path.read_text().count("# once more")) == (2, 1)


def test_invalid_file_of_another_program_is_not_applied(path):
    setup, run = made(path)
    path.write_text(TEXT.replace("heat_inside(belt)", "heat_inside(bolt)"))
    revision = refused_revision(setup, with_corner(setup.read("left")))
    with pytest.raises(ConfigError, match="Did you mean 'belt'"):
        setup.apply_file("left", revision)
    assert run.applied == []
    path.write_text(TEXT)
    assert len(setup.change("left", with_corner(setup.read("left")))["rules"]) == 2, "taken back, it is free again"


def test_file_that_became_writable_is_no_longer_remembered_as_unwritten(path, monkeypatch):
    setup, _ = made(path)
    monkeypatch.setattr("commands.wiring.setup.is_writable", lambda _path: False)
    setup.change("left", with_corner(setup.read("left")))
    monkeypatch.undo()
    path.write_text(TEXT + "# foreign\n")
    setup.apply_file("left", refused_revision(setup, with_corner(setup.read("left"))))
    path.write_text(TEXT)
    assert refused_revision(setup, with_corner(setup.read("left"))) is not None
