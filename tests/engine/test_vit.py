"""ViT-ReciproCAM equals its definition, runs no masked sequence at the last block, and refuses other transformers."""

import pytest
import timm
import torch
from torchvision.models import VisionTransformer

from engine.explainers.exported import ExportedExplainer
from engine.explainers.network import NetworkExplainer
from engine.export.exporter import export_network
from engine.methods.recipro import Target, plan_for, recipro_cam
from engine.methods.vit import ViTDensePlan, ViTPlan, choose_vit_plan, read_projections, vit_reference
from engine.models.catalog import describe_models
from engine.models.loader import LoadedModel
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import EngineError, LayerError
from pipeline.frames import Frame
from tests.engine.reference import GAUSSIAN
from tests.engine.transformers import small, speaking

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


def wide():
    return speaking(VisionTransformer(64, 16, 2, 12, 768, 3072, num_classes=40), (64, 64))


def of_timm(name="vit_tiny_patch16_224", size=(32, 48), **more):
    shape = {"img_size": size, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 6}
    return speaking(timm.create_model(name, **{**shape, **more}), size)


NETWORKS = {
    "torchvision": (small, (32, 32), "encoder.layers.encoder_layer_1.ln_1"),
    "as wide as vit_b_16": (wide, (64, 64), "encoder.layers.encoder_layer_1.ln_1"),
    "a row of patches": (lambda: of_timm(size=(8, 40)), (8, 40), "blocks.1.norm1"),
    "timm": (of_timm, (32, 48), "blocks.1.norm1"),
    "deit": (lambda: of_timm("deit_tiny_patch16_224"), (32, 48), "blocks.1.norm1"),
    "two class tokens": (lambda: of_timm("deit_tiny_distilled_patch16_224"), (32, 48), "blocks.1.norm1"),
    "layer scale": (lambda: of_timm("deit3_small_patch16_224", init_values=0.5), (32, 48), "blocks.1.norm1"),
    "registers": (lambda: of_timm(reg_tokens=3), (32, 48), "blocks.1.norm1"),
    "no biases": (lambda: of_timm(qkv_bias=False), (32, 48), "blocks.1.norm1"),
}


def masked(tokens, row, column, grid, kernel):
    """Keep all tokens before the patches' and one patch's, or its 3x3 neighbourhood's weighted; zero the others."""
    out = torch.zeros_like(tokens)
    first = tokens.shape[1] - grid[0] * grid[1]
    out[:, :first] = tokens[:, :first]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            weight = GAUSSIAN[dy + 1][dx + 1] if kernel == "gaussian" else float((dy, dx) == (0, 0))
            if 0 <= row + dy < grid[0] and 0 <= column + dx < grid[1]:
                index = first + (row + dy) * grid[1] + column + dx
                out[:, index] = tokens[:, index] * weight
    return out


def defined(net, layer, grid, images, chosen, kernel, only=None):
    """ViT-ReciproCAM as it is written: the network itself, once a patch; scores (N, K) and the matrix (N, h w)."""
    norm = net.get_submodule(layer)
    with torch.inference_mode():
        scores = net(images).softmax(1)
        chosen = scores.argmax(1) if chosen is None else torch.as_tensor(chosen)
        matrix = []
        for index in range(grid[0] * grid[1]) if only is None else only:
            handle = norm.register_forward_hook(
                lambda _m, _i, tokens, index=index: masked(tokens, *divmod(index, grid[1]), grid, kernel)
            )
            matrix.append(net(images).softmax(1)[torch.arange(len(images)), chosen])
            handle.remove()
    return scores, torch.stack(matrix, dim=1)


ROUNDING = 1e-5
"""Relative rounding error of a score after a network of this size in float32."""


def assert_as_defined(net, split, images, chosen, kernel):
    scores, heat = recipro_cam(split, images, chosen, kernel)
    true_scores, matrix = defined(net, split.layer, split.grid, images, chosen, kernel)
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    ranges = (high - low) / high
    assert float(ranges.min()) > 5e-4, "the reference is flat and proves nothing"
    assert float((scores - true_scores).abs().max()) < 1e-5
    apart = (heat - ((matrix - low) / (high - low)).view_as(heat)).abs().flatten(1).amax(1, keepdim=True)
    # Stretching a map to [0, 1] stretches its rounding as well.
    assert float((apart * ranges).max()) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_vit_recipro_cam_equals_the_definition(name):
    make, size, layer = NETWORKS[name]
    net = make()
    split = split_network(net, None, size)
    assert layer == split.layer
    images = torch.randn(3, 3, *size)
    assert_as_defined(net, split, images, None, "point")
    assert_as_defined(net, split, images, [3, 0, 5], "gaussian")
    assert {plan.info.name for plan in split.plans.values()} == {"tokens"}


@pytest.mark.slow
def test_vit_of_the_width_and_grid_of_vit_b_16_equals_the_definition_on_some_patches():
    net = speaking(VisionTransformer(224, 16, 3, 12, 768, 3072), (224, 224))
    split = split_network(net)
    assert (split.layer, split.grid) == ("encoder.layers.encoder_layer_2.ln_1", (14, 14))
    image = torch.randn(1, 3, 224, 224)
    some = [0, 100]
    with torch.inference_mode():
        features = split.head(image)
        plan = plan_for(split, features, "gaussian")
        result = plan(features)[1].softmax(2)
    assert plan.info.name == "tokens"
    scores, matrix = defined(net, split.layer, split.grid, image, None, "gaussian", some)
    assert float((result[0, some, scores.argmax()] - matrix[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
def test_inner_block_equals_the_definition_in_chunks(kernel):
    net = small()
    split = split_network(net, "encoder.layers.encoder_layer_0.ln_1", (32, 32))
    assert_as_defined(net, split, torch.randn(2, 3, 32, 32), [1, 4], kernel)
    (plan,) = split.plans.values()
    assert plan.info.name == "dense"


def test_other_attention_equals_the_definition():
    net = of_timm(qk_norm=True)
    split = split_network(net, None, (32, 48))
    assert_as_defined(net, split, torch.randn(2, 3, 32, 48), None, "point")
    (plan,) = split.plans.values()
    assert (plan.info.name, read_projections(split.tail.attention)) == ("dense", None)


def test_vit_dense_plan_is_independent_of_the_budget():
    split = split_network(small(), None, (32, 32))
    with torch.inference_mode():
        tokens = split.head(torch.randn(2, 3, 32, 32))
        wide = ViTDensePlan(split.tail, "gaussian", "asked for", 1 << 30)
        narrow = ViTDensePlan(split.tail, "gaussian", "asked for", 1)
        assert narrow.chunk(tokens) == 1 < wide.chunk(tokens)
        for first, other in zip(wide(tokens), narrow(tokens), strict=True):
            torch.testing.assert_close(first, other)


def test_vit_recipro_cam_is_independent_of_the_batch():
    net = small()
    images = torch.randn(5, 3, 32, 32) * torch.tensor([0.2, 1, 3, 9, 27])[:, None, None, None]
    with torch.no_grad():
        net.heads.head.bias -= net(images).mean(0)
    split = split_network(net, None, (32, 32))
    scores, heat = recipro_cam(split, images)
    assert len(set(scores.argmax(1).tolist())) > 1, "all images have one top class: the test says nothing"
    for n in range(5):
        alone_scores, alone_heat = recipro_cam(split, images[n : n + 1])
        torch.testing.assert_close(scores[n], alone_scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(heat[n], alone_heat[0], atol=2e-3, rtol=0)


def test_masking_the_residual_at_the_last_block_changes_nothing():
    split = split_network(small(), None, (32, 32))
    with torch.inference_mode():
        tokens = split.head(torch.randn(1, 3, 32, 32))
        normed = masked(split.tail.norm(tokens), 1, 2, (4, 4), "point")
        beside = masked(tokens, 1, 2, (4, 4), "point")
        defined_here = vit_reference(split.tail, tokens, "point", torch.tensor([6]))[:, 0]
        torch.testing.assert_close(split.tail.rest(beside, normed), defined_here)


def test_choose_vit_plan_detects_a_wrong_closed_form(monkeypatch):
    split = split_network(small(), None, (32, 32))
    features = split.head(torch.randn(1, 3, 32, 32))
    honest = ViTPlan._masked

    def one_zeroed_token_less(plan, logits, values):
        plan.zeroed = (plan.zeroed.exp() - 1).log()
        return honest(plan, logits, values)

    monkeypatch.setattr(ViTPlan, "_masked", one_zeroed_token_less)
    plan = choose_vit_plan(split.tail, features, "point", 1 << 30)
    assert plan.info.name == "dense"
    assert "is not exact for this network" in plan.info.reason


def test_vit_with_flat_scores_gives_zeros_and_no_nan():
    net = VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5).eval()
    scores, heat = recipro_cam(split_network(net, None, (32, 32)), torch.randn(2, 3, 32, 32))
    assert torch.equal(heat, torch.zeros(2, 4, 4))
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: of_timm(global_pool="avg"), "patch tokens"),
        (lambda: of_timm(global_pool="avg", class_token=False), "needs a class token and one token for each patch"),
        (lambda: of_timm(global_pool="map", class_token=False), "needs a class token and one token for each patch"),
    ],
)
def test_split_network_refuses_a_transformer_without_class_token_scores(make, rule):
    with pytest.raises(LayerError, match=rule):
        split_network(make(), None, (32, 48))


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({}, "its code branches on its inputs"),
        ({"class_token": False, "global_pool": "avg"}, "24 tokens at this layer for 4x6 patches"),
    ],
)
def test_find_vit_split_reads_the_grid_of_patches_with_channels_last(more, rule):
    with pytest.raises(LayerError, match=rule):
        split_network(of_timm(dynamic_img_size=True, **more), None, (32, 48))


@pytest.mark.parametrize("family", ["xcit", "cait"])
def test_split_network_refuses_class_attention_and_names_a_remedy(family):
    timm = pytest.importorskip("timm")
    of_family = {
        "xcit": lambda **sizes: timm.models.xcit.Xcit(**sizes, cls_attn_layers=1),
        "cait": lambda **sizes: timm.models.cait.Cait(**sizes, depth_token_only=1),
    }
    net = of_family[family](img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=4, num_classes=5)
    with pytest.raises(
        LayerError, match=r"returns 1 token for 5 tokens \(class attention.*use a model such as vit_b_16"
    ):
        split_network(net, None, (32, 32))


@pytest.mark.parametrize(
    "layer", ["conv_proj", "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_1.ln_2"]
)
def test_split_network_refuses_other_layers_of_a_transformer(layer):
    with pytest.raises(LayerError, match=r"omit --layer, or use one such as 'encoder\.layers\.encoder_layer_1\.ln_1'"):
        split_network(small(), layer, (32, 32))


def test_vit_refuses_another_image_size():
    with pytest.raises(EngineError, match="does not accept a 32x40 image"):
        split_network(small(), None, (32, 40))
    split = split_network(small(), None, (32, 32))
    with pytest.raises(EngineError, match="accepts only images of 32x32, not 16x64"):
        recipro_cam(split, torch.randn(1, 3, 16, 64))


def test_vit_in_half_precision_has_similar_outputs():
    net = small()
    images = torch.randn(2, 3, 32, 32)
    scores, heat = recipro_cam(split_network(net, None, (32, 32)), images, 2)
    half = split_network(net.bfloat16(), None, (32, 32))
    half_scores, half_heat = recipro_cam(half, images.bfloat16(), 2)
    assert half_scores.dtype == half_heat.dtype == torch.float32
    assert float((scores - half_scores).abs().max()) < 0.1
    assert float((heat - half_heat).abs().mean()) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("eager", "fp32"), ("eager", "bf16"), ("openvino", "fp32")])
def test_vit_backends_equal_the_definition(backend, precision):
    if backend == "openvino":
        pytest.importorskip("openvino")
    net = small(48)
    split = split_network(net, None, (48, 48))
    images = torch.randn(3, 3, 48, 48)
    runner = Runner(split, CompileConfig(Target(2), "gaussian", backend, precision, CPU, 1 << 28, batch_size=2))
    scores, classes, heat = runner(images.to(runner.config.dtype))
    true_scores, true_heat = recipro_cam(split, images, classes[:, 0], "gaussian")
    assert heat.shape == (3, 2, 6, 6)
    apart = float((scores - true_scores).abs().max()), float((heat[:, 0] - true_heat).abs().mean())
    assert max(apart) < (1e-3 if precision == "fp32" else 0.1)


def exported(suffix, folder):
    names = tuple(f"name {k}" for k in range(6))
    network = LoadedModel(small(), "small", names, (32, 32), IMAGENET_MEAN, IMAGENET_STD, None)
    return network, export_network(network, EngineConfig(target="top2"), folder / f"a{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_vit_is_exported_as_one_graph(suffix, tmp_path):
    network, result = exported(suffix, tmp_path)
    assert (result.metadata.method, result.metadata.plan) == ("vit-recipro-cam/point", "tokens")
    frame = Frame(torch.randint(0, 255, (60, 80, 3), dtype=torch.uint8).numpy(), "a", 0, 0.0)
    (first,) = ExportedExplainer(tmp_path / f"a{suffix}", EngineConfig(model="a")).explain([frame])
    (other,) = NetworkExplainer(network, EngineConfig(model="small", backend="eager", target="top2")).explain([frame])
    assert [f.label for f in first.findings] == [f.label for f in other.findings]
    assert first.first.heat == pytest.approx(other.first.heat, abs=5e-3)
    assert other.method == "vit-recipro-cam/point"


def test_export_refuses_an_inner_block(tmp_path):
    network = LoadedModel(small(), "small", (), (32, 32), IMAGENET_MEAN, IMAGENET_STD, None)
    config = EngineConfig(layer="encoder.layers.encoder_layer_0.ln_1")
    with pytest.raises(EngineError, match="omit --layer"):
        export_network(network, config, tmp_path / "a.onnx")


@pytest.mark.slow
def test_describe_models_lists_vision_transformers():
    record = {row.name: row for row in describe_models(["vit_b_16", "vit_b_32", "vit_h_14"])}
    assert {row.plan for row in record.values()} == {"tokens"}
    assert [row.grid for row in record.values()] == [(14, 14), (7, 7), (37, 37)]


@pytest.mark.slow
def test_stream_runs_with_a_vision_transformer(command, tmp_path):
    log = tmp_path / "a.jsonl"
    code, _, errors = command("stream", "--source", "line:?frames=3", "--model", "vit_tiny_patch16_224",
                              "--weights", "random", "--backend", "eager", "--sink", log)  # fmt: skip
    assert code == 0, errors
    assert "vit-recipro-cam" in log.read_text()
