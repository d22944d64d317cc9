"""A second network of a configuration: what is refused, and a run with one."""

from types import SimpleNamespace

import pytest

from commands.wiring.kinds import load_config
from commands.wiring.run import bundled_weights
from commands.wiring.trial import check_comparable
from pipeline.errors import ConfigError


def _network(name, *labels, box_mode=None):
    return SimpleNamespace(info=SimpleNamespace(model=name), labels=labels, box_mode=box_mode)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{"model": "a"}, {"model": "b"}], "models: has 2 networks; only one can be on trial"),
        ([{"model": "line_net"}], "the network under 'engine' is also named 'line_net'; set 'name:' of this network"),
        ("some/line_net.safetensors", "the network under 'engine' is also named 'line_net'"),
        ([{"model": "a", "name": "line_net"}], "the network under 'engine' is also named 'line_net'"),
        ([{"model": "a", "min_box_score": 2}], r"models\[0\].min_box_score: 2"),
        ([{"modl": "a"}], r"models\[0\].modl: unknown key"),
        ([3], r"models\[0\]: 3: should be a map"),
    ],
)
def test_models_that_cannot_be_on_trial_are_refused(models, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"models": models}, "run.yaml")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (_network("b", "ok", box_mode="keep"), "a is a classifier and b is a detector: only networks of one kind"),
        (_network("b", "cat", "dog"), "a and b have no class in common"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(second, message):
    with pytest.raises(ConfigError, match=message):
        check_comparable(_network("a", "ok", "dent"), second)
    check_comparable(_network("a", "ok", "dent"), _network("b", "ok", "scratch"))


def test_stream_compares_a_network_with_its_own_copy(command, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(
        f"sources: ['line:?paced=0&frames=3']\nengine: {{backend: eager}}\n"
        f"models: [{{model: line_net, name: copy, weights: {bundled_weights('line_net')}, backend: eager}}]\n"
    )
    code, shown, errors = command("stream", str(copy))
    assert code == 0, errors
    assert "copy on line: differs in 0 of 3 frames (0.0%)" in shown
