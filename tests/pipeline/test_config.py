"""Every option has a name, a type and a range; an error names the key and the remedy."""

import itertools
import re

import pytest
from pydantic import BaseModel, ValidationError

from commands.wiring.kinds import KINDS, load_config
from overlays.sinks.settings import CurveSettings
from pipeline.config import Config, EngineConfig, OverlayConfig
from pipeline.config_loader import read_yaml, to_yaml
from pipeline.config_yaml import to_documented_yaml
from pipeline.errors import ConfigError
from pipeline.guards.config import GuardConfig, RegionConfig
from pipeline.settings import SourceSettings
from tests.support.kinds import example_of

TRIANGLE = [[0, 0], [1, 0], [1, 1]]


def result(options, overrides=None):
    with pytest.raises(ConfigError) as caught:
        load_config(options, "run.yaml", overrides)
    return str(caught.value)


def test_an_unknown_key_names_the_nearest_right_one():
    assert result({"engine": {"bakend": "eager"}}) == "run.yaml: engine.bakend: unknown key. Did you mean 'backend'?"
    assert "Did you mean 'sources'" in result({"source": ["line:"]})
    assert "sources[0].naem: unknown key. Did you mean 'name'" in result({"sources": [{"uri": "line:", "naem": "x"}]})


def test_a_wrong_type_is_named_with_its_place_and_value():
    message = result({"engine": {"threads": "many"}})
    assert message.startswith("run.yaml: engine.threads: 'many'")


def test_list_in_place_of_a_map_is_refused():
    assert result({"engine": ["resnet18"]}).startswith("run.yaml: engine")


def test_a_mistake_on_the_command_line_names_the_option():
    assert result({}, {"frames": -1}).startswith("--frames: -1: should be greater than or equal to 1")
    assert "--precision: 'fp8'" in result({}, {"engine": {"precision": "fp8"}})


def test_all_mistakes_are_reported_at_once():
    assert len(result({"frames": 0, "seconds": -1, "engine": {"layr": "x"}}).splitlines()) == 3


def test_a_password_in_a_uri_is_never_repeated():
    assert "s3cret" not in result({"sources": [{"uri": "rtsp://me:s3cret@host/a", "overflow": "x"}]})
    assert "s3cret" not in result({"sources": {"rtsp://me:s3cret@host/a": 1}})
    assert "s3cret" not in result({"sources": [["rtsp://me:s3cret@host/a"]]})


@pytest.mark.parametrize(("text", "rule"), [("", "is empty"), ("- a\n- b", "not a map"), ("a: [", "not YAML at line")])
def test_a_file_that_is_no_map_is_refused(text, rule):
    with pytest.raises(ConfigError, match=rule):
        read_yaml(text, "run.yaml")


def test_the_command_line_wins_knob_by_knob():
    options = {"engine": {"model": "resnet18", "precision": "bf16"}, "sources": ["line:"]}
    config = load_config(options, "run.yaml", {"engine": {"model": "vgg16"}, "sources": ["0"]})
    assert (config.engine.model, config.engine.precision) == ("vgg16", "bf16")
    assert [source.uri for source in config.sources] == ["0"]


@pytest.mark.parametrize(("written", "size"), [("224x256", (224, 256)), (225, (225, 225)), ([96, 128], (96, 128))])
def test_sizes_are_read_as_people_write_them(written, size):
    assert load_config({"engine": {"input_size": written}}, "x").engine.input_size == size


@pytest.mark.parametrize(
    ("written", "target"), [("top1", ["top1"]), (3, ["3"]), ("a, 7", ["a", "7"]), ([1, "b"], ["1", "b"])]
)
def test_targets_are_read_as_people_write_them(written, target):
    assert load_config({"engine": {"target": written}}, "x").engine.target == target


def test_a_config_reads_back_what_it_prints():
    config = load_config(
        {
            "sources": ["line:", {"uri": "a.mp4", "name": "a"}],
            "sinks": "window",
            "engine": {"input_size": "96x128", "mean": 0.5},
        },
        "x",
    )
    assert load_config(read_yaml(to_yaml(config), "x"), "x") == config


MODELS = [model for section in ("sources", "sinks") for _, _, model in KINDS.models(section)]


def test_every_option_has_a_description():
    for model in (Config, EngineConfig, OverlayConfig, CurveSettings, *MODELS):
        for name, knob in model.model_fields.items():
            assert knob.description or name in {"engine", "overlay"}, f"{model.__name__}.{name}"


@pytest.mark.parametrize("text", ["sources: [line:]", "sources:\n  - line:"])
def test_an_unquoted_scheme_is_a_uri_though_yaml_takes_it_for_a_map(text):
    assert [source.uri for source in load_config(read_yaml(text, "run.yaml"), "run.yaml").sources] == ["line:"]


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}", "[[a]]"])
def test_a_key_that_is_no_word_is_refused(key):
    with pytest.raises(ConfigError, match="line 1, column 3: a key must be text"):
        read_yaml(f"? {key}\n: 1\n", "run.yaml")


def test_a_key_given_twice_is_refused_and_not_half_forgotten():
    with pytest.raises(ConfigError, match=r"yaml: at line 2, column 1: 'frames' is given twice"):
        read_yaml("frames: 1\nframes: 2\n", "run.yaml")


def test_error_for_a_key_in_the_wrong_map_names_the_right_map():
    with pytest.raises(ConfigError, match=r"run.yaml: model: unknown key. It belongs under 'engine:'"):
        load_config({"model": "resnet50"}, "run.yaml")


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"sources": [{"name": "door"}]}, "sources[0].uri: is missing"),
        ({"engine": []}, "engine: should be a map of keys"),
        ({"sources": []}, "sources: should not be empty"),
        ({"engine": {"model": ["a"]}}, "engine.model: should be text"),
    ],
)
def test_missing_empty_and_mistyped_values_are_refused_in_plain_words(options, result):
    with pytest.raises(ConfigError, match=re.escape(result)):
        load_config(options, "run.yaml")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\u202egnp.exe", "x" * 65, ""])
def test_name_of_a_camera_is_one_line_of_limited_length(name):
    with pytest.raises(ConfigError, match=r"sources\[0\]\.name.*: (should|contains the character)") as refused:
        load_config({"sources": [{"uri": "line:", "name": name}]}, "run.yaml")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a\x01b", "part\x7f", "\u202etrap", "\u2066x"])
def test_name_of_a_region_has_no_control_characters(name):
    region = {"name": name, "polygon": [[0, 0], [1, 0], [1, 1]]}
    with pytest.raises(ConfigError, match=r"guards\.regions\[0\]\.name.*contains the character U\+"):
        load_config({"guards": {"regions": [region]}}, "run.yaml")
    assert RegionConfig(**region | {"name": "شارع-1"}).name == "شارع-1"


def test_name_of_a_region_with_a_space_is_refused_with_one_without():
    region = {"name": "loading dock (east)", "polygon": [[0, 0], [1, 0], [1, 1]]}
    with pytest.raises(ConfigError, match="write for instance loading-dock-east"):
        load_config({"guards": {"regions": [region]}}, "run.yaml")


def number_options(model, path=()):
    """Every option that takes a number that need not be whole, at any depth, as a path of keys."""
    for name, field in model.model_fields.items():
        if name in {"sources", "sinks"} and not path:
            for _, keys, kind in KINDS.models(name):
                yield from number_options(kind, (name, example_of(keys[0])))
        elif name in {"regions", "rules"}:
            first = next(
                arg for arg in nested(field.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)
            )
            yield from number_options(first, (*path, name, 0))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from number_options(field.annotation, (*path, name))
        elif float in nested(field.annotation):
            yield (*path, name)


def nested(annotation):
    return [annotation, *(inner for arg in getattr(annotation, "__args__", ()) for inner in nested(arg))]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "'nan'"])
def test_no_option_takes_a_number_that_is_not_finite(value):
    places = list(number_options(Config))
    assert len(places) > 25
    inner = read_yaml(f"value: {value}", "t")["value"]
    needed = {"regions": {"name": "r", "polygon": TRIANGLE}, "rules": {"name": "g", "rule": "score>0.5"}}
    for path in places:
        number = [inner] * 3 if path[-1] in {"mean", "std"} else [[inner, 0]] * 3 if path[-1] == "polygon" else inner
        if path[0] in {"sources", "sinks"}:
            settings = {path[0]: [{"uri": path[1], path[2]: number}]}
        else:
            settings = number
            for position, key in reversed(list(enumerate(path))):
                settings = [needed[path[position - 1]] | settings] if key == 0 else {key: settings}
        with pytest.raises(ConfigError, match=path[-1]):
            load_config(settings, "run.yaml")


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"std": "1e-40"}, "greater than or equal to 0.0001"),
        ({"std": [0, 0, 0]}, "greater than or equal to 0.0001"),
        ({"mean": "nan"}, "finite number"),
        ({"mean": "a,b,c"}, "'a' is not a number"),
        ({"input_size": "16384x16384"}, "at most 16777216 pixels"),
        ({"threads": int("9" * 4000)}, "a number of 13288 bits"),
    ],
)
def test_engine_option_out_of_its_range_is_refused_in_one_short_line(knob, message):
    with pytest.raises(ConfigError) as refused:
        load_config({"engine": knob}, "run.yaml")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()[0]) < 300


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{two}: &{two} [{','.join([f'*{value}'] * 9)}]\n" for value, two in itertools.pairwise("abcdefghi")
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{two}: &{two}\n  <<: [{','.join([f'*{value}'] * 9)}]\n" for value, two in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "seconds: *i\n", "has more than 100000 values when its aliases are expanded"),
        (MERGES + "seconds: *i\n", "has more than 100000 values when its aliases are expanded"),
        ("a: &a [*a]\n", "an alias refers to a list or map that contains the alias"),
        ("a: " + "[" * 5000, "levels deep"),
        ("seconds: " + "9" * 5000, "4300 digits"),
        ("a: \x01", "#x0001"),
    ],
)
def test_yaml_that_grows_or_cannot_be_held_is_refused_before_anything_is_made_of_it(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_yaml(text, "run.yaml")


def test_aliases_of_acyclic_nodes_are_accepted():
    text = "base: &base {quality: 50}\nsinks: [{<<: *base, uri: a.jsonl}, {<<: *base, uri: b.jsonl}]\n"
    assert [item["quality"] for item in read_yaml(text, "run.yaml")["sinks"]] == [50, 50]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('sources: ["a\\0b.mp4"]', "sources[0]"),
        ('engine: {labels: "l\\0"}', "engine.labels"),
        ('sinks: [{uri: "o\\0.mp4"}]', "sinks[0].uri"),
    ],
)
def test_text_with_a_nul_character_is_refused_at_its_place(text, key):
    with pytest.raises(ConfigError, match=re.escape(f"run.yaml: {key}: holds a NUL")):
        load_config(read_yaml(text, "run.yaml"), "run.yaml")


@pytest.mark.parametrize("knob", ["rotate_seconds", "rotate_mib", "disk_budget_mib", "seconds_before", "seconds_after"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308])
def test_a_number_that_is_not_finite_or_beyond_reason_is_refused_by_name(knob, value):
    with pytest.raises(ConfigError, match=knob):
        load_config({"sinks": [{"uri": "clips/", knob: value}]}, "run.yaml")


@pytest.mark.parametrize(
    "options",
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
def test_configuration_with_every_key_reads_back_as_what_it_was(options):
    config = load_config(options, "run.yaml")
    text = to_documented_yaml(config, KINDS)
    assert load_config(read_yaml(text, "run.yaml"), "run.yaml") == config


def test_configuration_with_every_key_names_each_key_there_is_and_what_it_means():
    text = to_documented_yaml(Config(), KINDS)
    sinks = [model for _, _, model in KINDS.models("sinks")]
    for model in (
        Config,
        SourceSettings,
        EngineConfig,
        OverlayConfig,
        *sinks,
        CurveSettings,
        GuardConfig,
        RegionConfig,
    ):
        for name, field in model.model_fields.items():
            assert re.search(rf"^ *(# )?{name}:", text, flags=re.MULTILINE), name
            if field.description:
                assert field.description.split()[0] in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sinks": {"uri": "a.mp4", "qos": 1}}, "sinks[0].qos: is not an option of a video file (.mp4, .mkv); mqtt://"),
        ({"sinks": {"uri": "a.mp4", "crff": 1}}, "sinks[0].crff: unknown key. Did you mean 'crf'?"),
        ({"sinks": ["a.mp4?crf=99"]}, "sinks[0].crf: '99': should be less than or equal to 51"),
        ({"sources": {"uri": "camera:0", "transport": "udp"}}, "sources[0].transport: is not an option of a webcam"),
        (
            {"sources": {"uri": "line:", "attempts": 3}},
            "is not an option of a simulated line (line:); camera:, genicam:, rtsp://",
        ),
        ({"sinks": {"uri": "tcp://h:1", "curve": {"secret": "a"}}}, "Did you mean 'secret_key_file'"),
        ({"sinks": ["a.mp4", {"uri": "b.mp4", "crf": -1}], "frames": 0}, "sinks[1].crf: -1"),
    ],
)
def test_option_of_a_kind_that_is_wrong_is_named_with_its_remedy(settings, message):
    assert message in result(settings)


def test_option_in_a_uri_of_the_command_line_is_named():
    assert result({}, {"sinks": ["a.mp4?crff=1"]}) == "--sink: crff: unknown key. Did you mean 'crf'?"
    assert result({}, {"sinks": ["a.mp4?crf=x"]}).startswith("--sink: crf: 'x': should be a valid integer")


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("sources", {"uri": "camera:0", "size": "1280x720", "rate": 30, "encoding": "mjpeg", "attempts": 5}),
        ("sources", {"uri": "film.mp4", "threads": "slice", "loop": True}),
        ("sources", {"uri": "photos/", "images_per_second": 5, "watch": "all", "bits": 12}),
        ("sources", {"uri": "line:", "fps": 10, "size": "320x240", "paced": False}),
        ("sinks", {"uri": "tcp://127.0.0.1:5555", "linger_seconds": 2}),
        ("sinks", {"uri": "clips/", "preset": "veryfast", "fallback_rate": 25, "preroll_memory_mib": 16}),
    ],
)
def test_options_of_a_kind_are_read_printed_and_read_again(section, entry):
    config = load_config({section: [entry]}, "run.yaml")
    [loaded] = getattr(config, section)
    assert {key: getattr(loaded, key) for key in entry} == entry
    assert load_config(read_yaml(to_yaml(config), "x"), "x") == config


def test_variable_as_uri_has_the_kind_of_its_value(monkeypatch):
    monkeypatch.setenv("CAMERA_URI", "rtsp://door/live")
    [source] = load_config({"sources": [{"uri": "${CAMERA_URI}", "transport": "udp"}]}, "run.yaml").sources
    assert (source.uri, source.transport) == ("${CAMERA_URI}", "udp")


def test_configuration_is_frozen():
    config = load_config({"sinks": "a.mp4"}, "run.yaml")
    for part, name in ((config, "frames"), (config.sinks[0], "crf"), (config.sources[0], "uri")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 1)
