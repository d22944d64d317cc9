"""The database of events: written events are read back, limits are kept, and files of other programs are refused."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from overlays.events import schema
from overlays.events.event import Event, Evidence, Figure, new_event_id
from overlays.events.feed import EventFeed
from overlays.events.query import EventFilter, EventReader
from overlays.events.schema import MIGRATIONS, PAGE_BYTES, connect_writer
from overlays.events.store import Action, ActionConflict, EventStore
from pipeline.errors import SinkError
from tests.support.events import WALL

MIB = 1 << 20
DAY = 86400.0


def event(seconds=0.0, *, end=1.0, camera="line", kind="guard", rule="grounded", label="ok"):
    start = WALL + seconds
    figure = Figure("heat_inside(part)", 0.25, 0.5, -0.25)
    ended = None if end is None else start + end
    return Event(new_event_id(start), kind, camera, rule, "but is 0.25", start, start, ended, label, 0.9, 7, figure)


@contextmanager
def opened(path, *, budget=64 * MIB, keep=30 * DAY, now=WALL, running=0.0):
    store = EventStore(path, budget_bytes=budget, keep_seconds=keep)
    store.open(now, running)
    try:
        yield store
    finally:
        store.close()


def write(store, *events, evidence=None):
    return store.write({each.id: (each, evidence) for each in events})


def ids(reader, **chosen):
    return [record["id"] for record in reader.page(EventFilter(**chosen)).events]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.sqlite"


def test_numbers_without_json_form_are_stored_as_missing(path):
    infinite = replace(event(), score=math.nan, figure=Figure("age", math.inf, -math.inf, 0.0))
    with opened(path) as store:
        [record] = write(store, infinite)
        read = EventReader(path).event(infinite.id)
    assert json.loads(json.dumps(read, allow_nan=False)) == record | {"figures": {}}
    assert (record["score"], record["figure"]) == (None, None)


def test_database_with_damaged_pages_is_refused_with_the_remedy(path):
    with opened(path) as store:
        write(store, *(event(number) for number in range(100)))
    content = bytearray(path.read_bytes())
    for page in range(3 * PAGE_BYTES, len(content), PAGE_BYTES):
        content[page : page + 200] = bytes(range(1, 201))
    path.write_bytes(content)
    with pytest.raises(SinkError, match=r"is damaged .*; move it away"), opened(path):
        pass


def test_written_event_is_read_with_its_images_and_figures(path):
    written = event()
    with opened(path) as store:
        [record] = write(store, written, evidence=Evidence(b"plain", b"heat", {"index": 7}))
        reader = EventReader(path)
        read = reader.event(written.id)
        assert read == record | {"figures": {"index": 7}}
        assert record["images"] == ["plain", "heat"]
        assert record["figure"] == {"name": "heat_inside(part)", "value": 0.25, "bound": 0.5}
        assert (record["state"], record["track"], record["end"] - record["start"]) == ("new", 7, 1.0)
        assert (reader.image(written.id, "plain"), reader.image(written.id, "heat")) == (b"plain", b"heat")
        assert (reader.event("0"), reader.image("0", "heat")) == (None, None)


def test_event_that_changes_keeps_what_a_viewer_did(path):
    begun = event(end=None)
    with opened(path) as store:
        write(store, begun)
        store.act(Action(begun.id, "acknowledge", "Ada"), WALL + 5)
        [record] = write(store, replace(begun, end=WALL + 9))
    assert (record["state"], record["by"], record["acted"], record["end"]) == (
        "acknowledged",
        "Ada",
        WALL + 5,
        WALL + 9,
    )


def test_filters_admit_what_they_name(path):
    with opened(path) as store:
        a = event(0, camera="a", end=1)
        b = event(10, camera="b", kind="condition", label="scratch", end=100)
        c = event(20, camera="a", kind="signal_loss", end=None)
        write(store, a, b, c)
        store.act(Action(a.id, "acknowledge"), WALL)
        reader = EventReader(path)
        assert ids(reader) == [c.id, b.id, a.id]
        assert ids(reader, cameras=["a"]) == [c.id, a.id]
        assert ids(reader, kinds=["condition", "guard"]) == [b.id, a.id]
        assert ids(reader, labels=["scratch"]) == [b.id]
        assert ids(reader, states=["new"]) == [c.id, b.id]
        assert ids(reader, before=WALL + 20) == [b.id, a.id]
        assert ids(reader, after=WALL + 50) == [c.id, b.id]  # they still went on
        summary = reader.summary()
        assert (summary["new"], summary["open"]) == (2, 1)
        assert (summary["cameras"], summary["labels"]) == (["a", "b"], ["ok", "scratch"])


def test_pages_have_each_event_once(path):
    with opened(path) as store:
        written = [event(k / 10) for k in range(25)]
        write(store, *written)
        reader, seen, before = EventReader(path), [], None
        while True:
            page = reader.page(EventFilter(), limit=10, before_id=before)
            seen += [record["id"] for record in page.events]
            before = page.next_before
            if before is None:
                break
    assert seen == [each.id for each in reversed(written)]


def test_snooze_ends_by_itself_and_covers_events_of_the_same_rule(path):
    first, second, other = event(0), event(10), event(11, camera="b")
    with opened(path) as store:
        write(store, first)
        store.act(Action(first.id, "snooze", "Ada", until=WALL + 60), WALL)
        write(store, second, other)
        reader = EventReader(path)
        assert ids(reader, states=["snoozed"]) == [second.id, first.id]
        assert ids(reader, states=["new"]) == [other.id]
        assert store.wake(WALL + 59) == []
        assert {record["id"] for record in store.wake(WALL + 60)} == {first.id, second.id}
        assert ids(reader, states=["new"]) == [other.id, second.id, first.id]
        assert store.wake(WALL + 61) == []


def test_query_of_an_hour_has_events_that_began_before_it(path):
    with opened(path) as store:
        long, short, going_on = event(0, end=9000), event(3000, end=1000), event(10, end=None)
        ended, inside, later = event(1, end=100), event(4000), event(9000)
        write(store, long, short, going_on, ended, inside, later)
        reader = EventReader(path)
        chosen = {"after": WALL + 3800, "before": WALL + 7400}
        assert ids(reader, **chosen) == [inside.id, short.id, going_on.id, long.id]
        first = reader.page(EventFilter(**chosen), limit=2)
        assert [record["id"] for record in first.events] == [inside.id, short.id]
        second = reader.page(EventFilter(**chosen), limit=2, before_id=first.next_before)
        assert ([record["id"] for record in second.events], second.next_before) == ([going_on.id, long.id], None)


def test_database_of_an_older_version_is_migrated(path, monkeypatch):
    written = event()
    with opened(path) as store:
        write(store, written)
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE event ADD COLUMN weather TEXT DEFAULT 'rain';")
    )
    with opened(path), closing(sqlite3.connect(path)) as read:
        assert read.execute("SELECT id, weather FROM event").fetchall() == [(written.id, "rain")]
        assert read.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1


def test_note_and_reopening_are_kept(path):
    written = event()
    with opened(path) as store:
        write(store, written)
        store.act(Action(written.id, "acknowledge", "Ada"), WALL)
        store.act(Action(written.id, "note", "Bo", note="glare"), WALL + 1)
        record = store.act(Action(written.id, "reopen", "Bo"), WALL + 2)
        assert store.act(Action("0", "reopen"), WALL) is None
    assert (record["state"], record["note"], record["by"]) == ("new", "glare", "Bo")


def test_events_beyond_the_age_are_deleted_with_their_images(path):
    with opened(path, keep=DAY) as store:
        old, recent, going_on = event(0), event(DAY), event(1, end=None)
        write(store, old, recent, going_on, evidence=Evidence(b"plain", b"heat"))
        assert store.prune(WALL + DAY + 10, DAY + 10) == 1
        reader = EventReader(path)
        assert ids(reader) == [recent.id, going_on.id]
        assert reader.image(old.id, "plain") is None


def test_clock_that_jumps_ahead_deletes_no_more_than_a_day_of_events_in_an_hour(path):
    with opened(path, keep=30 * DAY) as store:
        write(store, *(event(k * DAY) for k in range(30)))
    year, hour = WALL + 395 * DAY, 3600.0
    with opened(path, keep=30 * DAY, now=year) as store:
        assert len(ids(EventReader(path))) == 30
        store.prune(year + 60, 60.0)
        assert len(ids(EventReader(path))) == 29
        store.prune(WALL + 30 * DAY, hour)  # the clock was set
        assert len(ids(EventReader(path))) == 29
        for passed in (1, 2, 3):
            store.prune(year + passed * hour, passed * hour)
        assert len(ids(EventReader(path))) == 28


def test_rule_that_fires_all_day_deletes_its_own_events_only(path):
    with opened(path, budget=8 * MIB) as store:
        rare = [event(float(k), rule="rare") for k in range(10)]
        write(store, *rare, evidence=Evidence(bytes(20_000), None))
        for k in range(40):
            flapping = [event(100.0 + k * 20 + j, rule="flapping") for j in range(20)]
            write(store, *flapping, evidence=Evidence(bytes(20_000), None))
            store.prune(WALL + 1000, 0.0)
        kept = ids(EventReader(path))
        assert {each.id for each in rare} <= set(kept)
        assert flapping[-1].id in kept
        assert store.file_bytes() <= 8 * MIB


def test_second_viewer_learns_that_an_event_was_changed(path):
    written = event()
    with opened(path) as store:
        write(store, written)
        seen = store.act(Action(written.id, "acknowledge", "Ada", version=0), WALL)
        assert seen["version"] == 1
        for late in (Action(written.id, "acknowledge", "Bo"), Action(written.id, "note", "Bo", note="x", version=0)):
            with pytest.raises(ActionConflict) as conflict:
                store.act(late, WALL + 1)
            assert conflict.value.record == seen
        assert store.act(Action(written.id, "reopen", "Bo", version=1), WALL + 2)["version"] == 2


@pytest.mark.slow
def test_database_stays_within_its_budget_over_a_tenfold_turnover(path):
    budget = 8 * MIB  # less the 5 MiB for the log: 2 to 3 MiB of images
    image = bytes(range(256)) * 80
    largest, count = 0, 0
    with opened(path, budget=budget) as store:
        while count * len(image) < 10 * budget:
            last = event(float(count))
            write(store, last, evidence=Evidence(image, None))
            count += 1
            if count % 20 == 0:
                store.prune(WALL + count, count)
            largest = max(largest, store.file_bytes())
        kept = ids(EventReader(path))
        assert kept[0] == last.id
        assert len(kept) > 50
    assert 2 * MIB < largest <= budget


def test_smaller_budget_shrinks_the_file(path):
    with opened(path, budget=32 * MIB) as store:
        write(store, *(event(float(k)) for k in range(400)), evidence=Evidence(bytes(40_000), None))
        assert store.file_bytes() > 16 * MIB
    with opened(path, budget=10 * MIB) as store:
        assert ids(EventReader(path))
    assert path.stat().st_size <= 10 * MIB


def test_events_of_a_killed_run_end_when_they_were_seen_last(path):
    begun = replace(event(end=None), seen=WALL + 30)
    with opened(path) as store:
        write(store, begun)
    with opened(path, now=WALL + 500):
        record = EventReader(path).event(begun.id)
    assert (record["end"], record["interrupted"]) == (WALL + 30, True)


def test_database_of_another_program_is_refused(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(SinkError, match="of another program"), opened(path):
        pass


def test_file_that_is_no_database_is_refused(path):
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(SinkError, match="is not a database"), opened(path):
        pass


def test_database_of_a_newer_version_is_refused(path):
    connection = connect_writer(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(SinkError, match="update the program"), opened(path):
        pass


def test_deleted_database_is_begun_again(path):
    with opened(path) as store:
        write(store, event())
        for file in path.parent.iterdir():
            file.unlink()
        second = event(1)
        write(store, second)
        assert ids(EventReader(path)) == [second.id]


def test_feed_gives_each_changed_event_once_as_it_is_now():
    feed = EventFeed()
    revision, nothing = feed.since(0)
    assert (revision, nothing) == (0, [])
    feed.publish([{"id": "a", "state": "new"}, {"id": "b", "state": "new"}])
    feed.publish([{"id": "a", "state": "acknowledged"}])
    revision, changed = feed.since(0)
    assert changed == [{"id": "a", "state": "acknowledged"}, {"id": "b", "state": "new"}]
    assert feed.since(revision) == (revision, [])
    feed.publish([{"id": str(k), "state": "new"} for k in range(300)])
    assert feed.since(revision)[1] is None  # too far behind
