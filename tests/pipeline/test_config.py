"""Every knob is named, typed and bounded; a mistake is told with its place and its cure."""

import re

import pytest

from pipeline.config import Config
from pipeline.config_text import make_config, read_yaml, to_yaml
from pipeline.errors import ConfigError


def told(knobs, overrides=None):
    with pytest.raises(ConfigError) as caught:
        make_config(knobs, "run.yaml", overrides)
    return str(caught.value)


def test_an_unknown_key_names_the_nearest_right_one():
    assert told({"engine": {"bakend": "eager"}}) == "run.yaml: engine.bakend: unknown key. Did you mean 'backend'?"
    assert "Did you mean 'sources'" in told({"source": ["line:"]})
    assert "sources[0].naem: unknown key. Did you mean 'name'" in told({"sources": [{"uri": "line:", "naem": "x"}]})


def test_a_wrong_type_is_named_with_its_place_and_value():
    message = told({"engine": {"threads": "many"}})
    assert message.startswith("run.yaml: engine.threads: 'many'")


def test_a_list_where_a_map_belongs_is_told():
    assert told({"engine": ["resnet18"]}).startswith("run.yaml: engine")


def test_a_mistake_on_the_command_line_names_the_option():
    assert told({}, {"frames": -1}).startswith("--frames: -1: should be greater than or equal to 1")
    assert "--precision: 'fp8'" in told({}, {"engine": {"precision": "fp8"}})


def test_all_mistakes_are_told_at_once():
    assert len(told({"frames": 0, "seconds": -1, "engine": {"layr": "x"}}).splitlines()) == 3


def test_a_password_in_a_uri_is_never_repeated():
    assert "s3cret" not in told({"sources": [{"uri": "rtsp://me:s3cret@host/a", "overflow": "x"}]})
    assert "s3cret" not in told({"sources": {"rtsp://me:s3cret@host/a": 1}})
    assert "s3cret" not in told({"sources": [["rtsp://me:s3cret@host/a"]]})


@pytest.mark.parametrize(("text", "rule"), [("", "is empty"), ("- a\n- b", "not a map"), ("a: [", "not YAML at line")])
def test_a_file_that_is_no_map_is_refused(text, rule):
    with pytest.raises(ConfigError, match=rule):
        read_yaml(text, "run.yaml")


def test_the_command_line_wins_knob_by_knob():
    knobs = {"engine": {"model": "resnet18", "precision": "bf16"}, "sources": ["line:"]}
    config = make_config(knobs, "run.yaml", {"engine": {"model": "vgg16"}, "sources": ["0"]})
    assert (config.engine.model, config.engine.precision) == ("vgg16", "bf16")
    assert [source.uri for source in config.sources] == ["0"]


@pytest.mark.parametrize(("written", "size"), [("224x256", (224, 256)), (225, (225, 225)), ([96, 128], (96, 128))])
def test_sizes_are_read_as_people_write_them(written, size):
    assert make_config({"engine": {"input_size": written}}, "x").engine.input_size == size


@pytest.mark.parametrize(
    ("written", "target"), [("top1", ["top1"]), (3, ["3"]), ("a, 7", ["a", "7"]), ([1, "b"], ["1", "b"])]
)
def test_targets_are_read_as_people_write_them(written, target):
    assert make_config({"engine": {"target": written}}, "x").engine.target == target


def test_a_config_reads_back_what_it_prints():
    config = make_config(
        {
            "sources": ["line:", {"uri": "a.mp4", "name": "a"}],
            "sinks": "window",
            "engine": {"input_size": "96x128", "mean": 0.5},
        },
        "x",
    )
    assert make_config(read_yaml(to_yaml(config), "x"), "x") == config


def test_every_knob_says_what_it_is():
    for model in (
        Config,
        *(type(getattr(Config(), part)) for part in ("engine", "overlay")),
        type(Config().sources[0]),
    ):
        for name, knob in model.model_fields.items():
            assert knob.description or name in {"engine", "overlay"}, f"{model.__name__}.{name}"


@pytest.mark.parametrize("text", ["sources: [line:]", "sources:\n  - line:"])
def test_an_unquoted_scheme_is_a_uri_though_yaml_takes_it_for_a_map(text):
    assert [one.uri for one in make_config(read_yaml(text, "run.yaml"), "run.yaml").sources] == ["line:"]


def test_a_key_given_twice_is_refused_and_not_half_forgotten():
    with pytest.raises(ConfigError, match=r"line 2, column 1: 'frames' is given twice"):
        read_yaml("frames: 1\nframes: 2\n", "run.yaml")


def test_a_key_in_the_wrong_map_is_told_where_it_belongs():
    with pytest.raises(ConfigError, match=r"run.yaml: model: unknown key. It belongs under 'engine:'"):
        make_config({"model": "resnet50"}, "run.yaml")


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"sources": [{"name": "door"}]}, "sources[0].uri: is missing"),
        ({"engine": []}, "engine: should be a map of keys"),
        ({"sources": []}, "sources: should not be empty"),
        ({"engine": {"model": ["a"]}}, "engine.model: should be text"),
    ],
)
def test_what_is_missing_empty_or_of_another_kind_is_told_in_plain_words(knobs, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        make_config(knobs, "run.yaml")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "x" * 65, ""])
def test_a_camera_s_name_is_one_line_of_a_reasonable_length(name):
    with pytest.raises(ConfigError, match=r"sources\[0\]\.name.*: should") as refused:
        make_config({"sources": [{"uri": "line:", "name": name}]}, "run.yaml")
    assert len(str(refused.value).splitlines()) == 1
