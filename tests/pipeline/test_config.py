"""Every knob is named, typed and bounded; a mistake is told with its place and its cure."""

import itertools
import re

import pytest
from pydantic import BaseModel

from pipeline.config import Config, CurveConfig, EngineConfig, OverlayConfig, SinkConfig, SourceConfig
from pipeline.config_loader import read_yaml, to_yaml, validate_config
from pipeline.config_yaml import to_documented_yaml
from pipeline.errors import ConfigError
from pipeline.guards.config import GuardConfig, RegionConfig

TRIANGLE = [[0, 0], [1, 0], [1, 1]]


def told(knobs, overrides=None):
    with pytest.raises(ConfigError) as caught:
        validate_config(knobs, "run.yaml", overrides)
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
    config = validate_config(knobs, "run.yaml", {"engine": {"model": "vgg16"}, "sources": ["0"]})
    assert (config.engine.model, config.engine.precision) == ("vgg16", "bf16")
    assert [source.uri for source in config.sources] == ["0"]


@pytest.mark.parametrize(("written", "size"), [("224x256", (224, 256)), (225, (225, 225)), ([96, 128], (96, 128))])
def test_sizes_are_read_as_people_write_them(written, size):
    assert validate_config({"engine": {"input_size": written}}, "x").engine.input_size == size


@pytest.mark.parametrize(
    ("written", "target"), [("top1", ["top1"]), (3, ["3"]), ("a, 7", ["a", "7"]), ([1, "b"], ["1", "b"])]
)
def test_targets_are_read_as_people_write_them(written, target):
    assert validate_config({"engine": {"target": written}}, "x").engine.target == target


def test_a_config_reads_back_what_it_prints():
    config = validate_config(
        {
            "sources": ["line:", {"uri": "a.mp4", "name": "a"}],
            "sinks": "window",
            "engine": {"input_size": "96x128", "mean": 0.5},
        },
        "x",
    )
    assert validate_config(read_yaml(to_yaml(config), "x"), "x") == config


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
    assert [one.uri for one in validate_config(read_yaml(text, "run.yaml"), "run.yaml").sources] == ["line:"]


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}", "[[a]]"])
def test_a_key_that_is_no_word_is_refused(key):
    with pytest.raises(ConfigError, match="line 1, column 3: a key must be one word"):
        read_yaml(f"? {key}\n: 1\n", "run.yaml")


def test_a_key_given_twice_is_refused_and_not_half_forgotten():
    with pytest.raises(ConfigError, match=r"line 2, column 1: 'frames' is given twice"):
        read_yaml("frames: 1\nframes: 2\n", "run.yaml")


def test_a_key_in_the_wrong_map_is_told_where_it_belongs():
    with pytest.raises(ConfigError, match=r"run.yaml: model: unknown key. It belongs under 'engine:'"):
        validate_config({"model": "resnet50"}, "run.yaml")


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
        validate_config(knobs, "run.yaml")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "x" * 65, ""])
def test_a_camera_s_name_is_one_line_of_a_reasonable_length(name):
    with pytest.raises(ConfigError, match=r"sources\[0\]\.name.*: should") as refused:
        validate_config({"sources": [{"uri": "line:", "name": name}]}, "run.yaml")
    assert len(str(refused.value).splitlines()) == 1


def number_knobs(model, place=()):
    """Every knob that takes a number that need not be whole, at any depth, as a path of keys."""
    for name, field in model.model_fields.items():
        if name in {"sources", "sinks", "regions", "rules"}:
            one = next(arg for arg in nested(field.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel))
            yield from number_knobs(one, (*place, name, 0))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from number_knobs(field.annotation, (*place, name))
        elif float in nested(field.annotation):
            yield (*place, name)


def nested(annotation):
    return [annotation, *(inner for arg in getattr(annotation, "__args__", ()) for inner in nested(arg))]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "'nan'"])
def test_no_knob_takes_a_number_that_is_none_or_without_end(value):
    places = list(number_knobs(Config))
    assert len(places) > 20
    for place in places:
        needed = {
            "sources": {"uri": "line:"},
            "sinks": {"uri": "a.jsonl"},
            "regions": {"name": "r", "polygon": TRIANGLE},
        }
        inner = read_yaml(f"value: {value}", "t")["value"]
        number = [inner] * 3 if place[-1] in {"mean", "std"} else [[inner, 0]] * 3 if place[-1] == "polygon" else inner
        knobs = number
        for key in reversed(place):
            knobs = [knobs] if key == 0 else {key: knobs}
        for kind, must in needed.items():
            if place[0] == kind or place[:2] == ("guards", kind):
                entry = knobs[place[0]] if place[0] == kind else knobs["guards"][kind]
                entry[0] = must | entry[0]
        if "rules" in place:
            knobs["guards"]["rules"][0] |= {"name": "g", "rule": "score>0.5"}
        with pytest.raises(ConfigError):
            validate_config(knobs, "run.yaml")


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ({"std": "1e-40"}, "greater than or equal to 0.0001"),
        ({"std": [0, 0, 0]}, "greater than or equal to 0.0001"),
        ({"mean": "nan"}, "finite number"),
        ({"mean": "a,b,c"}, "'a' is no number"),
        ({"input_size": "16384x16384"}, "at most 16777216 pixels"),
        ({"threads": int("9" * 4000)}, "a number of 13288 bits"),
    ],
)
def test_knob_of_the_network_out_of_its_range_is_refused_in_one_short_line(knob, said):
    with pytest.raises(ConfigError) as refused:
        validate_config({"engine": knob}, "run.yaml")
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()[0]) < 300


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{two}: &{two} [{','.join([f'*{one}'] * 9)}]\n" for one, two in itertools.pairwise("abcdefghi")
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{two}: &{two}\n  <<: [{','.join([f'*{one}'] * 9)}]\n" for one, two in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + "seconds: *i\n", "holds more than 100000 values once its aliases are written out"),
        (MERGES + "seconds: *i\n", "holds more than 100000 values once its aliases are written out"),
        ("a: &a [*a]\n", "an alias refers to what holds it"),
        ("a: " + "[" * 5000, "levels deep"),
        ("seconds: " + "9" * 5000, "4300 digits"),
        ("a: \x01", "#x0001"),
    ],
)
def test_yaml_that_grows_or_cannot_be_held_is_refused_before_anything_is_made_of_it(text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_yaml(text, "run.yaml")


def test_aliases_that_only_save_writing_are_taken():
    text = "base: &base {quality: 50}\nsinks: [{<<: *base, uri: a.jsonl}, {<<: *base, uri: b.jsonl}]\n"
    assert [one["quality"] for one in read_yaml(text, "run.yaml")["sinks"]] == [50, 50]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('sources: ["a\\0b.mp4"]', "sources[0]"),
        ('engine: {labels: "l\\0"}', "engine.labels"),
        ('sinks: [{uri: "o\\0.mp4"}]', "sinks[0].uri"),
    ],
)
def test_text_with_a_nul_character_is_refused_at_its_place(text, place):
    with pytest.raises(ConfigError, match=re.escape(f"run.yaml: {place}: holds a NUL")):
        validate_config(read_yaml(text, "run.yaml"), "run.yaml")


@pytest.mark.parametrize("knob", ["rotate_seconds", "rotate_mib", "disk_budget_mib", "seconds_before", "max_rate"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308])
def test_a_number_that_is_not_finite_or_beyond_reason_is_refused_by_name(knob, value):
    with pytest.raises(ConfigError, match=knob):
        validate_config({"sinks": [{"uri": "clips/", knob: value}]}, "run.yaml")


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {
            "sources": [{"uri": "rtsp://h/x", "name": "ü: #1"}, "line:"],
            "engine": {"std": [0.2, 0.3, 0.4], "target": ["top1", "ok"]},
            "sinks": [
                {"uri": "tcp://127.0.0.1:5555", "curve": {"secret_key_file": "a", "authorized_keys": "b"}},
                "x.jsonl",
            ],
            "guards": {
                "regions": [{"name": "part", "polygon": TRIANGLE}],
                "rules": [{"name": "g", "rule": "heat_inside(part) >= 0.6 when label='a b'", "cameras": ["yes", "no"]}],
            },
        },
    ],
)
def test_configuration_with_every_key_reads_back_as_what_it_was(knobs):
    made = validate_config(knobs, "run.yaml")
    text = to_documented_yaml(made)
    assert validate_config(read_yaml(text, "run.yaml"), "run.yaml") == made


def test_configuration_with_every_key_names_each_key_there_is_and_what_it_means():
    text = to_documented_yaml(Config())
    for model in (
        Config,
        SourceConfig,
        EngineConfig,
        OverlayConfig,
        SinkConfig,
        CurveConfig,
        GuardConfig,
        RegionConfig,
    ):
        for name, field in model.model_fields.items():
            assert re.search(rf"^ *(# )?{name}:", text, flags=re.MULTILINE), name
            if field.description:
                assert field.description.split()[0] in text
