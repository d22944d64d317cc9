"""Groups, duplicates and splits of labelled images."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.finetuning.splits import TEST, Sample, group_ids, merge_duplicates, stratified_group_split
from pipeline.errors import ConfigError
from tests.support.training import FRACTIONS, square_samples


def test_group_ids_are_the_pattern_matches_or_the_paths():
    names = ["a/part1_left.jpg", "a/part1_right.jpg", "b/part2_left.jpg"]
    assert group_ids(names) == names
    assert group_ids(names, r"part(\d+)_") == ["1", "1", "2"]
    assert group_ids(names, r"(\w)/part(\d+)_") == ["a/1", "a/1", "b/2"]
    assert group_ids(names, "part1|part2") == ["part1", "part1", "part2"]


def test_group_ids_join_frame_numbers_within_the_gap():
    names = [f"exp{k}_num_{number}.jpg" for k, number in enumerate((310, 100, 120, 300, 141))]
    assert group_ids(names, r"num_(\d+)", 21) == ["300", "100", "100", "300", "100"]
    assert group_ids(names, r"num_(\d+)", 19) == ["300", "100", "120", "300", "141"]


@pytest.mark.parametrize(
    ("pattern", "gap", "rule"),
    [
        ("(", None, "not a regular expression"),
        (r"x(\d+)", None, "matches no part of 'a.jpg'"),
        ("(a)", 5, "matches 'a', which is not a number"),
    ],
)
def test_group_ids_refuse_an_unusable_pattern(pattern, gap, rule):
    with pytest.raises(ConfigError, match=rule):
        group_ids(["a.jpg"], pattern, gap)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 7), min_size=5, max_size=14), min_size=2, max_size=4),
    seed=st.integers(0, 5),
)
def test_split_keeps_groups_whole_and_has_every_class_in_every_part(sizes, seed):
    samples = [
        Sample(f"{kind}/{group}/{k}", str(kind), f"{kind}.{group}")
        for kind, group_sizes in enumerate(sizes)
        for group, size in enumerate(group_sizes)
        for k in range(size)
    ]
    parts = stratified_group_split(samples, FRACTIONS, seed)
    paths = sorted(sample.path for split in parts.values() for sample in split)
    assert paths == sorted(sample.path for sample in samples)
    groups = [{sample.group for sample in split} for split in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for split in parts.values():
        assert {sample.label for sample in split} == {str(kind) for kind in range(len(sizes))}
    assert stratified_group_split(samples[::-1], FRACTIONS, seed) == parts


def test_split_has_the_fractions_and_depends_on_the_seed():
    samples = square_samples(40)
    parts = stratified_group_split(samples, FRACTIONS, 0)
    assert [len(split) for split in parts.values()] == [72, 24, 24]
    assert stratified_group_split(samples, FRACTIONS, 1) != parts


def test_split_names_a_class_with_too_few_groups():
    samples = [*square_samples(), Sample("x/1", "x", "only"), Sample("x/2", "x", "only")]
    with pytest.raises(ConfigError, match="class 'x': has 1 group for 3 splits"):
        stratified_group_split(samples, FRACTIONS, 0)


def test_merge_duplicates_joins_the_groups_of_equal_images():
    rows = [("a", "1", "x"), ("b", "2", "y"), ("c", "2", "x"), ("d", "3", "y"), ("e", "4", "z"), ("f", "5", "")]
    samples, copies = merge_duplicates([Sample(path, "k", group, digest) for path, group, digest in rows])
    assert copies == 2
    group_of = {sample.path: sample.group for sample in samples}
    assert [len({group_of[path] for path in paths}) for paths in ("abcd", "abcde", "abcdef")] == [1, 2, 3]


def test_merge_duplicates_refuses_an_image_with_two_labels():
    samples = [Sample("ok/1.png", "ok", "1", "x"), Sample("bad/7.png", "bad", "7", "x")]
    with pytest.raises(ConfigError, match=r"ok/1.png \(ok\) and bad/7.png \(bad\)"):
        merge_duplicates(samples)


def test_split_has_no_image_of_an_earlier_training_in_the_test_part():
    samples = [Sample(f"{kind}/{k}", kind, f"{kind}{k // 2}", f"{kind}{k}") for kind in "rgb" for k in range(20)]
    trained = {sample.digest for sample in samples if int(sample.digest[1:]) < 14}
    for seed in range(4):
        parts = stratified_group_split(samples, FRACTIONS, seed, trained)
        assert {sample.label for sample in parts[TEST]} == set("rgb")
        assert not any(sample.digest in trained for sample in parts[TEST])
        assert sum(map(len, parts.values())) == len(samples)
    every_b = {sample.digest for sample in samples if sample.label == "b"}
    with pytest.raises(ConfigError, match="class 'b': the network was trained on all of its images"):
        stratified_group_split(samples, FRACTIONS, 0, trained | every_b)
