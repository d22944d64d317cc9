"""The JSON Schema and the reference of the configuration come from the settings models."""

import json
import re
from pathlib import Path

import pytest
import yaml

from commands.wiring.kinds import KINDS
from pipeline.config import Config
from pipeline.config_schema import config_reference, config_schema

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"
MODELS = [(section, *model) for section in ("sources", "sinks") for model in KINDS.models(section)]


def test_reference_in_the_docs_is_what_the_models_say():
    assert REFERENCE.read_text(encoding="utf-8") == config_reference(KINDS), (
        f"the settings models have changed; run: uv run run.py schema --markdown > {REFERENCE.relative_to(ROOT)}"
    )


def test_reference_names_every_option_of_every_kind():
    text = config_reference(KINDS)
    for title, name, keys, model in MODELS:
        entries = text.partition(f"\n## {title.capitalize()}\n")[2]
        section = entries.partition(f"### {name[:1].upper()}{name[1:]}\n")[2].partition("\n#")[0]
        assert all(f"`{key}`" in section for key in keys)
        assert all(f"| `{option}` |" in section for option in model.model_fields if option != "uri"), name


def test_schema_defines_every_key_and_option():
    schema = config_schema(KINDS)
    json.dumps(schema)
    assert set(schema["properties"]) == set(Config.model_fields)
    for section, _, _, model in MODELS:
        definition = schema["$defs"][model.__name__]
        assert set(definition["properties"]) == set(model.model_fields)
        assert definition["additionalProperties"] is False
        assert {"$ref": f"#/$defs/{model.__name__}"} in schema["properties"][section]["anyOf"]
    for reference in re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)):
        assert reference in schema["$defs"]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("tcp://127.0.0.1:5555", "ZeroMqSettings"),
        ("out.mp4?crf=28", "VideoSettings"),
        ("clips/", "ClipSettings"),
        ("window", "WindowSettings"),
        ("mqtts://host/topic", "MqttSettings"),
    ],
)
def test_schema_tells_kinds_apart_by_their_uri(uri, kind):
    definitions = config_schema(KINDS)["$defs"]
    sinks = [model.__name__ for section, _, _, model in MODELS if section == "sinks"]
    matching = [name for name in sinks if re.search(definitions[name]["properties"]["uri"]["pattern"], uri)]
    assert matching == [kind]


def test_schema_knows_every_key_of_the_shipped_configurations():
    schema = config_schema(KINDS)
    for file in (ROOT / "configs").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= set(schema["properties"])


def test_command_prints_the_schema(command):
    code, printed, _ = command("schema")
    assert code == 0
    assert json.loads(printed) == json.loads(json.dumps(config_schema(KINDS)))
