"""Sources stay whole, classes stand in every part, and whatever learns gives the same weights for the same seed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.finetuning.dataset import AUGMENTATIONS, ImageDataset, build_augmentation
from engine.finetuning.finetune import Callbacks, finetune
from engine.finetuning.head import class_keys, replace_head
from engine.finetuning.setup import FinetuneConfig, build_model
from engine.finetuning.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Sample,
    group_ids,
    merge_duplicates,
    stratified_group_split,
)
from engine.finetuning.trainables import FullFinetuner, LinearProbe, capture_input, faster, freeze_to
from engine.finetuning.trainer import TrainingConfig, class_weights, confusion, train, wilson_interval
from engine.methods.recipro import plan_for
from engine.models.checkpoint import load_checkpoint, save_checkpoint
from engine.models.loader import build_untrained, load_network
from engine.models.preprocess import Preprocessing
from engine.models.registry import MODELS
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, LayerError, ModelError

SHARES = {TRAIN: 0.6, VALIDATION: 0.2, TEST: 0.2}
SIDE = 32


def painted(path):
    """A picture whose class is the place of a bright square's colour."""
    kind, number = path.split("/")
    rng = np.random.default_rng(int(number))
    image = rng.integers(0, 90, (40, 48, 3), np.uint8)
    y, x = rng.integers(0, 24, 2)
    image[y : y + 14, x : x + 14, "rgb".index(kind)] = 255
    return image


def roster(each=20):
    return [Sample(f"{kind}/{number}", kind, f"{kind}{number // 2}") for kind in "rgb" for number in range(each)]


def silent(_):
    return None


def taught(parts, wish, told=None):
    return finetune(build_model(wish, sorted({one.label for one in parts[TRAIN]})), parts, painted, told or watching())


def watching(stop=lambda: False):
    return Callbacks(lambda done, todo: None, silent, stop)


def test_a_source_is_what_the_pattern_finds_and_every_picture_is_one_without_it():
    names = ["a/part1_left.jpg", "a/part1_right.jpg", "b/part2_left.jpg"]
    assert group_ids(names) == names
    assert group_ids(names, r"part(\d+)_") == ["1", "1", "2"]
    assert group_ids(names, r"(\w)/part(\d+)_") == ["a/1", "a/1", "b/2"]
    assert group_ids(names, "part1|part2") == ["part1", "part1", "part2"]


def test_frame_numbers_that_follow_each_other_closely_are_one_source():
    names = [f"exp{k}_num_{number}.jpg" for k, number in enumerate((310, 100, 120, 300, 141))]
    assert group_ids(names, r"num_(\d+)", 21) == ["300", "100", "100", "300", "100"]
    assert group_ids(names, r"num_(\d+)", 19) == ["300", "100", "120", "300", "141"]


@pytest.mark.parametrize(
    ("pattern", "gap", "rule"),
    [
        ("(", None, "no regular expression"),
        (r"x(\d+)", None, "not found in 'a.jpg'"),
        ("(a)", 5, "gives 'a', no number"),
    ],
)
def test_a_pattern_that_cannot_tell_sources_is_refused(pattern, gap, rule):
    with pytest.raises(ConfigError, match=rule):
        group_ids(["a.jpg"], pattern, gap)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 7), min_size=5, max_size=14), min_size=2, max_size=4),
    seed=st.integers(0, 5),
)
def test_no_source_is_in_two_parts_every_class_in_all_and_nobody_is_lost(sizes, seed):
    samples = [
        Sample(f"{kind}/{source}/{k}", str(kind), f"{kind}.{source}")
        for kind, several in enumerate(sizes)
        for source, size in enumerate(several)
        for k in range(size)
    ]
    parts = stratified_group_split(samples, SHARES, seed)
    assert sorted(one.path for several in parts.values() for one in several) == sorted(one.path for one in samples)
    sources = [{one.group for one in several} for several in parts.values()]
    assert sum(map(len, sources)) == len(set.union(*sources))
    for several in parts.values():
        assert {one.label for one in several} == {str(kind) for kind in range(len(sizes))}
    assert stratified_group_split(samples[::-1], SHARES, seed) == parts


def test_classes_stand_in_each_part_by_their_share_and_seeds_divide_differently():
    samples = roster(40)
    parts = stratified_group_split(samples, SHARES, 0)
    assert {part: len(several) for part, several in parts.items()} == {TRAIN: 72, VALIDATION: 24, TEST: 24}
    assert stratified_group_split(samples, SHARES, 1) != parts


def test_a_class_with_too_few_sources_is_named():
    samples = [*roster(), Sample("x/1", "x", "only"), Sample("x/2", "x", "only")]
    with pytest.raises(ConfigError, match="class 'x': 1 source for 3 parts"):
        stratified_group_split(samples, SHARES, 0)


def test_copies_of_a_picture_are_one_source_and_join_the_sources_they_are_in():
    told = [("a", "1", "x"), ("b", "2", "y"), ("c", "2", "x"), ("d", "3", "y"), ("e", "4", "z"), ("f", "5", "")]
    samples, copies = merge_duplicates([Sample(path, "k", source, digest) for path, source, digest in told])
    assert copies == 2
    assert [len({one.group for one in samples if one.path in group}) for group in ("abcd", "abcde", "abcdef")] == [
        1, 2, 3,
    ]  # fmt: skip


def test_a_picture_under_two_labels_is_refused_with_both_places():
    samples = [Sample("ok/1.png", "ok", "1", "x"), Sample("bad/7.png", "bad", "7", "x")]
    with pytest.raises(ConfigError, match=r"ok/1.png \(ok\) and bad/7.png \(bad\)"):
        merge_duplicates(samples)


def test_what_was_learned_from_before_never_examines():
    samples = [Sample(f"{kind}/{k}", kind, f"{kind}{k // 2}", f"{kind}{k}") for kind in "rgb" for k in range(20)]
    seen = {one.digest for one in samples if int(one.digest[1:]) < 14}
    for seed in range(4):
        parts = stratified_group_split(samples, SHARES, seed, seen)
        assert {one.label for one in parts[TEST]} == set("rgb")
        assert not any(one.digest in seen for one in parts[TEST])
        assert sum(map(len, parts.values())) == len(samples)
    with pytest.raises(ConfigError, match="class 'b': the network has learned from all of its pictures"):
        stratified_group_split(samples, SHARES, 0, seen | {one.digest for one in samples if one.label == "b"})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_last_layer_is_what_the_class_count_changes_and_it_is_one(name):
    keys = class_keys(MODELS[name], 6)
    assert len({key.rpartition(".")[0] for key in keys}) == 1


def test_a_network_keeps_its_weights_and_gets_a_new_last_layer(tmp_path):
    torch.manual_seed(1)
    old = build_untrained(MODELS["squeezenet1_1"], 9)
    torch.save({"state_dict": {f"module.{key}": value for key, value in old.state_dict().items()}}, tmp_path / "w.pth")
    net, entry, last = replace_head("squeezenet1_1", tmp_path / "w.pth", 4)
    assert (entry.name, last) == ("squeezenet1_1", "classifier.1")
    assert net.get_submodule(last).out_channels == 4
    state = net.state_dict()
    kept = [key for key in old.state_dict() if not key.startswith(last)]
    assert all(torch.equal(state[key], old.state_dict()[key]) for key in kept)
    with pytest.raises(ModelError, match="do not fit resnet18"):
        replace_head("resnet18", tmp_path / "w.pth", 4)


def test_every_class_of_rectified_scores_begins_where_it_can_learn():
    net, _, last = replace_head("squeezenet1_1", "random", 5)
    scores = net(torch.randn(2, 3, 64, 64))
    assert scores.min() > 5
    torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1])).backward()
    assert net.get_submodule(last).bias.grad.abs().min() > 0
    plain, _, last = replace_head("line_net", "random", 5)
    assert plain.get_submodule(last).bias.abs().max() < 1


def test_weights_of_the_same_class_count_get_a_new_last_layer_too(tmp_path):
    old = build_untrained(MODELS["squeezenet1_1"], 4)
    torch.save(old.state_dict(), tmp_path / "w.pth")
    net, _, last = replace_head("squeezenet1_1", tmp_path / "w.pth", 4)
    assert not torch.equal(net.get_submodule(last).weight, old.get_submodule(last).weight)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_features_before_the_last_layer_and_what_follows_it_give_the_networks_scores(name):
    torch.manual_seed(0)
    net, entry, last = replace_head(name, "random", 3)
    pictures = ImageDataset([one.path for one in roster(2)], painted, Preprocessing((64, 64), entry.mean, entry.std))
    learner = LinearProbe(
        net, last, pictures, lambda pixels: pixels, device=torch.device("cpu"), views=1, seed=0,
        train_indices=np.arange(3), on_progress=lambda done, todo: None,
    )  # fmt: skip
    with torch.inference_mode():
        scores = net(pictures.normalised(pictures.fitted(range(6))))
        assert torch.allclose(learner.logits(np.arange(6), augment=False), scores, atol=1e-5)


def test_a_last_layer_learns_faster_on_features_that_differ_less():
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    rates = [faster(features * scale) for scale in (3.0, 0.25, 0.02, 1e-9, 0.0)]
    assert rates == pytest.approx([1.0, 1.0, 10.0, 30.0, 1.0], rel=0.1)
    assert faster(features[:1]) == 1.0


def test_what_enters_a_layer_is_what_it_is_called_with():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    entered, scores = capture_input(net, net[1], torch.ones(2, 3, 1, 1))
    assert entered.tolist() == [[1, 1, 1]] * 2
    assert torch.equal(scores, net[1](entered))


def test_frozen_layers_stay_and_the_rest_learns():
    net, entry, last = replace_head("resnet18", "random", 3)
    left = freeze_to(net, "layer3", (64, 64))
    learning = {name.partition(".")[0] for name, one in net.named_parameters() if one.requires_grad}
    assert learning == {"layer4", "fc"}
    assert left == sum(one.numel() for one in [*net.layer4.parameters(), *net.fc.parameters()])
    pictures = ImageDataset(["r/1"], painted, Preprocessing((64, 64), entry.mean, entry.std))
    learner = FullFinetuner(net, last, pictures, lambda pixels: pixels, device=torch.device("cpu"))
    assert [group["lr"] for group in learner.param_groups(0.1)] == [0.4, 0.1]
    with pytest.raises(LayerError, match="Did you mean 'layer4'"):
        freeze_to(net, "layer44", (64, 64))
    with pytest.raises(LayerError, match="nothing is left"):
        freeze_to(net, "fc", (64, 64))


def test_of_a_network_that_ends_earlier_layers_are_frozen_by_the_names_people_know():
    def learning(layer):
        net = build_model(
            FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer3", freeze_until=layer), "rgb"
        ).net
        return {name.split(".")[1] for name, one in net.named_parameters() if one.requires_grad}

    assert learning("layer2") == {"layer3", "weight", "bias"}
    assert learning("layer3") == {"weight", "bias"}
    with pytest.raises(LayerError, match=r"ends before it, with 'layer3'; name one of .*layer1, layer2, layer3$"):
        learning("layer4")
    with pytest.raises(LayerError, match=r"no such layer\. Did you mean 'layer3'.*layer2, layer3$"):
        learning("layer33")


def test_pictures_beyond_the_memory_are_read_again_and_look_the_same():
    reads = []

    def read(path):
        reads.append(path)
        return painted(path)

    paths = [one.path for one in roster(4)]
    place = Preprocessing((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
    small, large = ImageDataset(paths, read, place, 2 * 3 * SIDE * SIDE), ImageDataset(paths, painted, place)
    for _ in range(2):
        assert torch.equal(small.fitted(range(12)), large.fitted(range(12)))
    assert len(reads) == 12 + 10


@pytest.mark.parametrize("word", sorted(AUGMENTATIONS))
def test_a_change_keeps_shape_and_type_and_the_same_seed_changes_alike(word):
    pixels = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    change = build_augmentation([word], (SIDE, SIDE))
    told = []
    for _ in range(2):
        torch.manual_seed(5)
        told.append(change(pixels))
    assert told[0].shape == pixels.shape
    assert told[0].dtype == torch.uint8
    assert torch.equal(*told)
    assert not torch.equal(told[0], pixels)


def test_an_unknown_change_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'hflip'"):
        build_augmentation(["hflp"], (SIDE, SIDE))


def test_rare_classes_weigh_more_and_all_weights_average_to_one():
    classes = np.array([0] * 6 + [1] * 2)
    weights = class_weights(classes, "weights")
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert float(weights[torch.from_numpy(classes)].mean()) == pytest.approx(1.0)
    assert class_weights(classes, "sampler") is None


def test_few_witnesses_tell_little():
    assert wilson_interval(0.9, 10) == pytest.approx((0.596, 0.982), abs=1e-3)
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 1998
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1.0, 3)[1] == 1.0


def test_confusion_counts_truths_in_rows():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3) == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


class Scripted:
    """A learner that gets better until its third epoch, then worse."""

    def __init__(self):
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.visited, self.epoch = [], 0

    def param_groups(self, learning_rate):
        return [{"params": [self.bias], "lr": learning_rate}]

    def logits(self, numbers, *, augment):
        if augment:
            self.visited += numbers.tolist()
            return torch.stack([torch.zeros(len(numbers)), self.bias.expand(len(numbers))], 1)
        self.epoch += 1
        right = 4 - abs(self.epoch - 3)
        given = [int(number % 2) if place < right else 1 - int(number % 2) for place, number in enumerate(numbers)]
        return torch.nn.functional.one_hot(torch.tensor(given), 2).float()

    def state_dict(self):
        return {"epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state):
        self.restored = int(state["epoch"])


def test_the_best_epoch_stays_and_nothing_goes_on_without_hope():
    learner = Scripted()
    classes = np.array([0, 1, 0, 1, 0, 0, 0, 0, 0, 1])
    told = train(
        learner,
        classes,
        np.arange(4, 10),
        np.arange(4),
        TrainingConfig(20, 3, 0.1, patience=2),
        seed=0,
        on_epoch=silent,
    )
    assert [epoch.best for epoch in told] == [True, True, True, False, False]
    assert learner.restored == 3
    assert learner.visited.count(9) == 5 * 3  # the only one of its class: as often as the five others together


def test_where_epochs_cost_nothing_a_smaller_loss_is_hope_too():
    class Surer(Scripted):
        """All right at first, barely; then one is barely wrong and the others ever surer."""

        def logits(self, numbers, *, augment):
            if augment:
                return super().logits(numbers, augment=True)
            self.epoch += 1
            margins = [0.1 if self.epoch == 1 else -0.01 if place == 0 else self.epoch for place in range(len(numbers))]
            signs = [2 * (int(number) % 2) - 1 for number in numbers]
            return torch.tensor([[0.0, margin * sign] for margin, sign in zip(margins, signs, strict=True)])

    classes = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    for loss_counts, epochs in ((False, 3), (True, 12)):
        learner = Surer()
        course = TrainingConfig(12, 2, 0.1, patience=2, improve_on_loss=loss_counts)
        told = train(learner, classes, np.arange(4, 8), np.arange(4), course, seed=0, on_epoch=silent)
        assert len(told) == epochs
        assert learner.restored == 1


def test_who_knows_something_already_keeps_nothing_worse():
    learner = Scripted()
    learner.epoch = 2
    classes = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    told = train(
        learner,
        classes,
        np.arange(4, 8),
        np.arange(4),
        TrainingConfig(20, 2, 0.1, patience=2),
        seed=0,
        on_epoch=silent,
        warm_start=True,
    )
    assert [epoch.best for epoch in told] == [False, False]
    assert learner.restored == 2


def test_a_loss_without_bounds_ends_it_and_what_was_best_stays():
    class Runaway(Scripted):
        def logits(self, numbers, *, augment):
            told = super().logits(numbers, augment=augment)
            return told * float("nan") if augment and self.epoch >= self.good else told

    classes = np.array([0, 1] * 4)
    course = TrainingConfig(20, 2, 0.1, patience=9)
    learner = Runaway()
    learner.good = 2
    told = train(learner, classes, np.arange(4, 8), np.arange(4), course, seed=0, on_epoch=silent)
    assert len(told) == learner.restored == 2
    learner = Runaway()
    learner.good = 0
    with pytest.raises(ModelError, match="choose a lower --learning-rate"):
        train(learner, classes, np.arange(4, 8), np.arange(4), course, seed=0, on_epoch=silent)


def test_a_training_that_is_ended_keeps_what_it_had():
    learner = Scripted()
    asked = iter([False] * 5 + [True] * 100)
    classes = np.array([0, 1] * 4)
    told = train(
        learner,
        classes,
        np.arange(4, 8),
        np.arange(4),
        TrainingConfig(20, 2, 0.1, patience=9),
        seed=0,
        on_epoch=silent,
        stop=lambda: next(asked),
    )
    assert len(told) == 2
    assert learner.restored == 2


@pytest.mark.parametrize("freeze", [True, False])
def test_a_network_learns_what_pictures_show_and_runs_from_its_file(freeze, tmp_path):
    parts = stratified_group_split(roster(), SHARES, 0)
    epochs = 3 if freeze else 16
    wish = FinetuneConfig(
        "line_net", "random", (SIDE, SIDE), "letterbox", linear_probe=freeze, augment=("hflip", "vflip"), epochs=epochs,
        batch=12, learning_rate=4e-3, threads=1,
    )  # fmt: skip
    diplomas = [taught(parts, wish) for _ in range(2)]
    for key, value in diplomas[0].checkpoint.state.items():
        assert torch.equal(value, diplomas[1].checkpoint.state[key]), key
    diploma = diplomas[0]
    assert diploma.checkpoint.labels == ("b", "g", "r")
    assert json.loads(json.dumps(dict(diploma.checkpoint.provenance)))["images"] == {
        part: len(s) for part, s in parts.items()
    }
    if not freeze:
        assert diploma.metrics[TEST].accuracy > 0.8
        assert diploma.epochs[-1].loss < diploma.epochs[0].loss
    save_checkpoint(tmp_path / "part.safetensors", diploma.checkpoint)
    network = load_network(str(tmp_path / "part.safetensors"))
    place = network.preprocessing(EngineConfig())
    assert (place.fit, place.input_size, network.labels) == ("letterbox", (SIDE, SIDE), ("b", "g", "r"))
    assert network.preprocessing(EngineConfig(fit="crop")).fit == "crop"
    pictures = ImageDataset([path for path, *_ in diploma.metrics[TEST].predictions], painted, place)
    with torch.inference_mode():
        given = network.module(pictures.normalised(pictures.fitted(range(len(pictures))))).argmax(1).tolist()
    assert given == [one[2] for one in diploma.metrics[TEST].predictions]
    assert load_checkpoint(tmp_path / "part.safetensors").fit == "letterbox"


def test_a_pretrained_network_is_tuned_after_its_last_layer_learned_alone(tmp_path):
    torch.save(build_untrained(MODELS["squeezenet1_1"], 5).state_dict(), tmp_path / "w.pth")
    stages = []
    wish = FinetuneConfig(
        "squeezenet1_1", str(tmp_path / "w.pth"), (64, 64), epochs=1, batch=8, threads=1, precision="bf16"
    )
    told = Callbacks(lambda done, todo: None, lambda at: stages.append(at.stage), lambda: False)
    diploma = taught(stratified_group_split(roster(6), SHARES, 0), wish, told)
    assert stages[-1] == ""
    assert set(stages[:-1]) == {"last layer alone"}
    assert len(diploma.epochs) == 1
    assert all(value.dtype == torch.float32 for value in diploma.checkpoint.state.values())


def test_freezing_all_and_freezing_to_a_layer_contradict_each_other():
    with pytest.raises(ConfigError, match="give one of them"):
        build_model(FinetuneConfig("line_net", linear_probe=True, freeze_until="features"), "rgb")


def test_a_model_file_takes_no_weights_beside_it(tmp_path):
    with pytest.raises(ConfigError, match="has its own weights"):
        load_network(str(tmp_path / "part.safetensors"), weights="other.pth")


@pytest.mark.parametrize(("name", "until"), [("resnet18", "layer3"), ("squeezenet1_1", "features.8")])
def test_a_network_that_ends_earlier_is_its_layers_a_mean_and_a_linear_layer(name, until, tmp_path):
    parts = stratified_group_split(roster(6), SHARES, 0)
    wish = FinetuneConfig(name, "random", (64, 64), truncate_at=until, epochs=1, batch=6, threads=1)
    diploma = taught(parts, wish)
    save_checkpoint(tmp_path / "part.safetensors", diploma.checkpoint)
    network = load_network(str(tmp_path / "part.safetensors"))
    split = split_network(network.module, network.layer, network.input_size)
    assert split.layer == "features"
    assert min(split.grid) >= 3
    whole = build_untrained(MODELS[name], 1000)
    kept = {
        key.removeprefix("features."): value
        for key, value in diploma.checkpoint.state.items()
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


def test_a_network_cannot_end_with_what_it_does_not_have():
    with pytest.raises(LayerError, match="Did you mean 'layer3'"):
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layr3"), "rgb")


@pytest.mark.parametrize("until", [None, "layer2"])
def test_what_was_learned_is_gone_on_with(until, tmp_path):
    place = tmp_path / "part.safetensors"
    first = FinetuneConfig("resnet18", "random", (64, 64), "letterbox", truncate_at=until, epochs=1, batch=6, threads=1)
    save_checkpoint(place, taught(stratified_group_split(roster(6), SHARES, 0), first).checkpoint)
    before = load_checkpoint(place)
    pupil = build_model(FinetuneConfig(str(place)), ("a", "g", "r"))
    now, last = pupil.net.state_dict(), pupil.head_name
    kept = [key for key in before.state if not key.startswith(last)]
    assert all(torch.equal(now[key], before.state[key]) for key in kept)
    rows = {kind: now[f"{last}.weight"][k] for k, kind in enumerate("agr")}
    assert [torch.equal(rows[kind], before.state[f"{last}.weight"]["bgr".index(kind)]) for kind in "gr"] == [True] * 2
    assert pupil.known_labels == ("g", "r")
    assert (pupil.preprocessing.fit, pupil.preprocessing.input_size) == ("letterbox", (64, 64))
    assert (pupil.layer, pupil.truncate_at, pupil.name) == (before.layer, until, "resnet18")
    assert build_model(FinetuneConfig(str(place)), "rbg").warm_start

    small = FinetuneConfig(str(place), epochs=1, batch=6, threads=1, linear_probe=True, input_size=(96, 96), fit="crop")
    file = taught(stratified_group_split(roster(6), SHARES, 1), small).checkpoint
    assert (file.fit, file.input_size, file.truncate_at, file.model) == ("crop", (96, 96), until, "resnet18")
    assert file.provenance["began_with"]["file"] == "part.safetensors"
    assert file.provenance["began_with"]["labels_kept"] == ["b", "g", "r"]


def test_a_file_that_ends_earlier_is_no_whole_networks_weights(tmp_path):
    place = str(tmp_path / "part.safetensors")
    wish = FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", epochs=1, batch=6, threads=1)
    save_checkpoint(place, taught(stratified_group_split(roster(6), SHARES, 0), wish).checkpoint)
    for call in (
        lambda: load_network("resnet18", weights=place),
        lambda: build_model(FinetuneConfig("resnet18", place), "rgb"),
    ):
        with pytest.raises(ModelError, match=f"truncated at 'layer2'.*--model {place}"):
            call()
    with pytest.raises(ConfigError, match="ends with 'layer2'; leave --truncate-at out"):
        build_model(FinetuneConfig(place, truncate_at="layer3"), "rgb")
    with pytest.raises(
        ConfigError,
        match="has its own weights; omit --weights",
    ):
        build_model(FinetuneConfig(place, "w.pth"), "rgb")
    with pytest.raises(LayerError, match="--layer 'layer1': a network that ends with 'layer2' is explained there"):
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", layer="layer1"), "rgb")
    assert (
        build_model(FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer2", layer="layer2"), "rgb").layer
        == "features"
    )
