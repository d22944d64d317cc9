"""Fine-tuning from the settings to the checkpoint."""

import json
from dataclasses import replace

import pytest
import torch

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.finetune import finetune
from engine.finetuning.setup import FROM_SCRATCH_DEFAULTS, FULL_DEFAULTS, FinetuneConfig, build_model
from engine.finetuning.splits import TEST, VALIDATION, stratified_group_split
from engine.finetuning.trainer import TrainingConfig
from engine.methods.recipro import plan_for
from engine.models.checkpoint import load_checkpoint, save_checkpoint
from engine.models.loader import build_untrained, load_network
from engine.models.registry import MODELS
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, LayerError, ModelError
from tests.support.training import FRACTIONS, callbacks, run_finetune, square_box, square_image, square_samples

SIDE = 32


def square_parts(per_class=20, seed=0):
    return stratified_group_split(square_samples(per_class), FRACTIONS, seed)


@pytest.mark.slow
@pytest.mark.parametrize("linear_probe", [True, False])
def test_finetune_is_repeatable_and_gives_a_working_checkpoint(linear_probe, tmp_path):
    parts = square_parts()
    epochs = 3 if linear_probe else 16
    config = FinetuneConfig(
        "line_net", "random", (SIDE, SIDE), "letterbox", linear_probe=linear_probe, augment=("hflip", "vflip"),
        epochs=epochs, batch=12, learning_rate=4e-3, threads=1,
    )  # fmt: skip
    results = [run_finetune(parts, config) for _ in range(2)]
    for key, value in results[0].checkpoint.state.items():
        assert torch.equal(value, results[1].checkpoint.state[key]), key
    result = results[0]
    assert result.checkpoint.labels == ("b", "g", "r")
    assert json.loads(json.dumps(dict(result.checkpoint.provenance)))["images"] == {
        part: len(s) for part, s in parts.items()
    }
    if not linear_probe:
        assert result.metrics[TEST].accuracy > 0.8
        assert result.epochs[-1].loss < result.epochs[0].loss
    save_checkpoint(tmp_path / "part.safetensors", result.checkpoint)
    network = load_network(str(tmp_path / "part.safetensors"))
    preprocessing = network.preprocessing(EngineConfig())
    assert (preprocessing.fit, preprocessing.input_size, network.labels) == ("letterbox", (SIDE, SIDE), ("b", "g", "r"))
    assert network.preprocessing(EngineConfig(fit="crop")).fit == "crop"
    images = ImageDataset([path for path, *_ in result.metrics[TEST].predictions], square_image, preprocessing)
    with torch.inference_mode():
        predictions = network.module(images.normalised(images.fitted(range(len(images))))).argmax(1).tolist()
    assert predictions == [one[2] for one in result.metrics[TEST].predictions]
    assert load_checkpoint(tmp_path / "part.safetensors").fit == "letterbox"


def test_finetune_trains_the_last_layer_of_a_pretrained_network_first(tmp_path):
    torch.save(build_untrained(MODELS["squeezenet1_1"], 5).state_dict(), tmp_path / "w.pth")
    stages = []
    config = FinetuneConfig(
        "squeezenet1_1", str(tmp_path / "w.pth"), (64, 64), epochs=1, batch=8, threads=1, precision="bf16"
    )
    reports = callbacks(lambda stats: stages.append(stats.stage))
    result = run_finetune(square_parts(6), config, reports)
    assert stages[-1] == ""
    assert set(stages[:-1]) == {"last layer alone"}
    assert len(result.epochs) == 1
    assert all(value.dtype == torch.float32 for value in result.checkpoint.state.values())


def test_build_model_refuses_linear_probe_with_freeze_until():
    with pytest.raises(ConfigError, match="use only one of them"):
        build_model(FinetuneConfig("line_net", linear_probe=True, freeze_until="features"), "rgb")


def test_load_network_refuses_weights_for_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="has its own weights"):
        load_network(str(tmp_path / "part.safetensors"), weights="other.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "until"), [("resnet18", "layer3"), ("squeezenet1_1", "features.8")])
def test_finetune_of_a_truncated_network_keeps_its_layers(name, until, tmp_path):
    parts = square_parts(6)
    config = FinetuneConfig(name, "random", (64, 64), truncate_at=until, epochs=1, batch=6, threads=1)
    result = run_finetune(parts, config)
    save_checkpoint(tmp_path / "part.safetensors", result.checkpoint)
    network = load_network(str(tmp_path / "part.safetensors"))
    split = split_network(network.module, network.layer, network.input_size)
    assert split.layer == "features"
    assert min(split.grid) >= 3
    whole = build_untrained(MODELS[name], 1000)
    kept = {
        key.removeprefix("features."): value
        for key, value in result.checkpoint.state.items()
        if "classifier" not in key
    }
    whole.load_state_dict(kept, strict=False)
    assert set(kept) <= set(whole.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        features = split_network(whole, until, (64, 64)).head(images)
        assert torch.allclose(network.module.classifier(features.mean((2, 3))), network.module(images), atol=1e-5)
        plan = plan_for(split, split.head(images[:1]), "point", 1 << 28)
    assert plan.info.name == "pooled"


def test_build_model_refuses_an_unknown_truncate_at():
    with pytest.raises(LayerError, match="Did you mean 'layer3'"):
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layr3"), "rgb")


@pytest.mark.slow
@pytest.mark.parametrize("until", [None, "layer2"])
def test_build_model_continues_from_a_checkpoint(until, tmp_path):
    path = tmp_path / "part.safetensors"
    first = FinetuneConfig("resnet18", "random", (64, 64), "letterbox", truncate_at=until, epochs=1, batch=6, threads=1)
    save_checkpoint(path, run_finetune(square_parts(6), first).checkpoint)
    before = load_checkpoint(path)
    model = build_model(FinetuneConfig(str(path)), ("a", "g", "r"))
    now, last = model.net.state_dict(), model.head_name
    kept = [key for key in before.state if not key.startswith(last)]
    assert all(torch.equal(now[key], before.state[key]) for key in kept)
    rows = {kind: now[f"{last}.weight"][k] for k, kind in enumerate("agr")}
    assert [torch.equal(rows[kind], before.state[f"{last}.weight"]["bgr".index(kind)]) for kind in "gr"] == [True] * 2
    assert model.known_labels == ("g", "r")
    assert (model.preprocessing.fit, model.preprocessing.input_size) == ("letterbox", (64, 64))
    assert (model.layer, model.truncate_at, model.name) == (before.layer, until, "resnet18")
    assert build_model(FinetuneConfig(str(path)), "rbg").warm_start

    small = FinetuneConfig(str(path), epochs=1, batch=6, threads=1, linear_probe=True, input_size=(96, 96), fit="crop")
    file = run_finetune(square_parts(6, 1), small).checkpoint
    assert (file.fit, file.input_size, file.truncate_at, file.model) == ("crop", (96, 96), until, "resnet18")
    assert file.provenance["began_with"]["file"] == "part.safetensors"
    assert file.provenance["began_with"]["labels_kept"] == ["b", "g", "r"]


@pytest.mark.slow
def test_truncated_checkpoint_is_not_the_weights_of_a_whole_network(tmp_path):
    path = str(tmp_path / "part.safetensors")
    config = FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", epochs=1, batch=6, threads=1)
    save_checkpoint(path, run_finetune(square_parts(6), config).checkpoint)
    for call in (
        lambda: load_network("resnet18", weights=path),
        lambda: build_model(FinetuneConfig("resnet18", path), "rgb"),
    ):
        with pytest.raises(ModelError, match=f"truncated at 'layer2'.*--model {path}"):
            call()
    with pytest.raises(ConfigError, match="ends with 'layer2'; omit --truncate-at"):
        build_model(FinetuneConfig(path, truncate_at="layer3"), "rgb")
    with pytest.raises(
        ConfigError,
        match="has its own weights; omit --weights",
    ):
        build_model(FinetuneConfig(path, "w.pth"), "rgb")
    with pytest.raises(LayerError, match="--layer 'layer1': a network truncated at 'layer2' is explained at"):
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", layer="layer1"), "rgb")
    assert (
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", layer="layer2"), "rgb").layer
        == "features"
    )


def test_finetune_from_scratch_uses_defaults_for_random_weights():
    (scratch,) = FinetuneConfig("resnet18", "random", epochs=7).stages()
    assert scratch == replace(FROM_SCRATCH_DEFAULTS, epochs=7)
    assert FinetuneConfig("resnet18").stages() == (FULL_DEFAULTS,)
    assert FROM_SCRATCH_DEFAULTS.learning_rate > FULL_DEFAULTS.learning_rate


def test_build_model_gives_a_truncated_network_random_weights_of_the_seed(caplog):
    def state(seed):
        config = FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", seed=seed)
        return build_model(config, "rgb").net.state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.conv1.weight"], other["features.conv1.weight"])
    assert not caplog.records


def test_finetune_trains_the_stages_of_a_course_one_after_the_other():
    parts = square_parts()
    del parts[TEST]
    boxes = {sample.path: square_box(sample.path) for split in parts.values() for sample in split}
    crops = TrainingConfig(6, 12, 4e-3, 6, label_smoothing=0.0, crop=24, object_area=200.0, stage="crops")
    whole = replace(crops, epochs=3, crop=None, stage="whole")
    config = FinetuneConfig(
        "line_net", "random", (48, 64), augment=("hflip", "vflip"), threads=1, course=(crops, whole)
    )  # fmt: skip
    history = []
    result = run_finetune(parts, config, callbacks(history.append), boxes=boxes)
    assert [(stats.stage, stats.epoch) for stats in history] == [
        *(("crops", k) for k in range(1, 7)),
        *(("whole", k) for k in range(1, 4)),
    ]
    assert history[5].validation_score > 0.9
    assert result.metrics[VALIDATION].accuracy > 0.9
    assert set(result.metrics) == {VALIDATION}
    assert [stage["crop"] for stage in result.checkpoint.provenance["course"]["stages"]] == [24, None]
    assert "course" not in result.checkpoint.provenance["wish"]


def test_finetune_refuses_crops_larger_than_the_input():
    crops = TrainingConfig(1, 12, 4e-3, 1, crop=SIDE + 1)
    model = build_model(FinetuneConfig("line_net", "random", (SIDE, SIDE), course=(crops,)), "bgr")
    with pytest.raises(ModelError, match="crop 33: is larger than the input of 32x32"):
        finetune(model, square_parts(6), square_image, callbacks())
