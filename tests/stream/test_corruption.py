from stream.corruption import CorruptionTracker

# Shown in the order of their numbers, decoded in this one: I0 P3 B1 B2 P6 B4 B5 | I9 B7 B8 P12
DECODED = [(0, True), (3, False), (1, False), (2, False), (6, False), (4, False), (5, False)]
NEXT_GROUP = [(9, True), (7, False), (8, False), (12, False), (10, False)]


def believed(trust, pts):
    return [t for t in pts if trust.is_intact(t)]


def test_tracker_reports_undamaged_stream_as_intact():
    trust = CorruptionTracker()
    for pts, key in DECODED + NEXT_GROUP:
        trust.add_packet(pts, key=key)
    assert believed(trust, range(13)) == list(range(13))


def test_tracker_suspects_frames_until_keyframe():
    trust = CorruptionTracker()
    for pts, key in DECODED[:5]:
        trust.add_packet(pts, key=key)
    trust.mark_corrupt()  # P6
    for pts, key in DECODED[5:] + NEXT_GROUP:
        trust.add_packet(pts, key=key)
    assert believed(trust, range(13)) == [0, 1, 2, 3, 9, 10, 11, 12]  # 7 and 8 depend on 6 as well


def test_tracker_suspects_packets_after_corrupt_frame():
    trust = CorruptionTracker()
    for pts, key in DECODED:
        trust.add_packet(pts, key=key)
    trust.mark_corrupt(pts=2)
    assert believed(trust, [0, 1, 2, 3]) == [0, 1, 3]
    assert believed(trust, [4, 5, 6]) == []


def test_where_every_packet_is_a_key_picture_only_the_broken_one_is_lost():
    trust = CorruptionTracker()
    for pts in range(6):
        trust.add_packet(pts, key=True)
        if pts == 2:
            trust.mark_corrupt()
    assert believed(trust, range(6)) == [0, 1, 3, 4, 5]


def test_tracker_ends_suspicion_after_window():
    trust = CorruptionTracker(window_packets=3)
    trust.add_packet(0, key=True)
    trust.add_packet(1, key=False)
    trust.mark_corrupt()
    for pts in range(2, 8):
        trust.add_packet(pts, key=False)
    assert believed(trust, range(8)) == [0, 5, 6, 7]


def test_pictures_without_times_are_in_doubt_as_long_as_the_damage_lasts():
    trust = CorruptionTracker()
    trust.add_packet(None, key=True)
    assert trust.is_intact(None)
    trust.add_packet(None, key=False)
    trust.mark_corrupt()
    assert not trust.is_intact(None)
    trust.add_packet(None, key=True)
    assert trust.is_intact(None)
