"""The runner: its choice of a backend, the check of its outputs and the batch sizes that it compiles."""

import pytest
import torch

from engine.backends.registry import AUTOMATIC, BACKENDS, BackendEntry
from engine.explainers.network import NetworkExplainer
from engine.methods.recipro import Target
from engine.models.loader import load_network
from engine.runtime import runner as building
from engine.runtime.runner import CompileConfig, Runner, select_first_working
from engine.runtime.verification import Similarity, rank_correlation, similarity, similarity_shortfall
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import BackendError
from tests.engine.reference import small_net

CPU = torch.device("cpu")


def test_similarity_of_equal_reversed_and_flat_maps():
    first = torch.rand(2, 9)
    assert rank_correlation(first, first**3).tolist() == pytest.approx([1, 1])
    assert rank_correlation(first, 1 - first).tolist() == pytest.approx([-1, -1])
    assert rank_correlation(torch.zeros(1, 9), torch.zeros(1, 9)).tolist() == [1]
    assert rank_correlation(torch.zeros(1, 9), first[:1]).tolist() == [0]
    truth = torch.rand(4, 7).softmax(1), torch.tensor([[1], [2], [3], [4]]), torch.rand(4, 1, 3, 3)
    assert similarity(truth, truth) == Similarity(pytest.approx(1), 1, pytest.approx(1))
    assert similarity(truth, (truth[0], truth[1].flip(0), truth[2])).top == 0


def test_similarity_shortfall_names_measures_and_allows_eager_loss():
    assert not similarity_shortfall(Similarity(1.0, 1.0, 0.995), "fp16")
    assert similarity_shortfall(Similarity(1.0, 1.0, 0.97), "fp16").startswith("heat rank correlation 0.97")
    assert not similarity_shortfall(Similarity(1.0, 1.0, 0.97), "fp16", Similarity(1.0, 1.0, 0.98))
    assert similarity_shortfall(Similarity(1.0, 1.0, 0.95), "fp16", Similarity(1.0, 1.0, 0.98))
    assert similarity_shortfall(Similarity(float("nan"), 1.0, 1.0), "fp16")


def test_runner_refuses_a_backend_that_ranks_cells_differently(monkeypatch):
    class Turning:
        """Returns right results at the first call, and maps rotated by 180 degrees at later calls."""

        asked = 0

        def missing(self, device):
            return ""

        def compile(self, module, example, precision, cache=None):
            def run(images):
                self.asked += 1
                scores, classes, heat = module(images)
                return scores, classes, heat.flip(2, 3) if self.asked > 1 else heat

            return run

    class Entry:
        lowers_precision, any_batch, keeps_order = False, True, True
        turning = Turning()

        def load(self):
            return self.turning

    monkeypatch.setitem(BACKENDS, "turning", Entry())
    split = split_network(small_net(), "3", (32, 32))
    with pytest.raises(BackendError, match=r"'turning' in fp32 differs from eager float32.*heat rank correlation"):
        Runner(split, CompileConfig(Target(), "point", "turning", "fp32", CPU, 1 << 28))


def test_runner_checks_ranking_only_for_keeps_order_backends():
    assert BACKENDS["tensorrt"].keeps_order
    assert not BackendEntry("m", any_batch=True, description="").keeps_order


@pytest.mark.slow
def test_runner_compiles_batch_sizes_before_use(monkeypatch):
    compiled = []
    entry = BACKENDS["openvino"]
    honest = building.Runner._compile
    monkeypatch.setattr(building.Runner, "_compile", lambda self, count: compiled.append(count) or honest(self, count))
    split = split_network(small_net(), "3", (32, 32))
    if entry.load().missing("cpu"):
        pytest.skip("needs openvino")
    runner = Runner(
        split, CompileConfig(Target(), "point", "openvino", "fp32", CPU, 1 << 28, batch_size=4, batch_sizes=(2, 4))
    )
    assert compiled == [1, 2, 4]
    assert [len(part) for part in runner._split_batch(torch.zeros(2, 3, 32, 32))] == [2]
    assert [len(part) for part in runner._split_batch(torch.zeros(6, 3, 32, 32))] == [4, 1, 1]


def test_explainer_metrics_have_build_time_and_cache_use(tmp_path):
    network = load_network("squeezenet1_1", weights="random")
    tmp_path.chmod(0o700)
    options = EngineConfig(
        model="squeezenet1_1", input_size="64x64", backend="eager", device="cpu", cache=str(tmp_path)
    )
    metrics = {(figure.name, dict(figure.labels).get("how")): figure.value for figure in
            NetworkExplainer(network, options).metrics()}  # fmt: skip
    assert metrics["engine_build_seconds", None] > 0
    assert metrics["engine_cache_entries", "taken"] == metrics["engine_cache_entries", "written"] == 0


def test_auto_on_a_gpu_uses_the_first_working_backend(caplog):
    assert AUTOMATIC["cuda"] == ("tensorrt", "eager"), "inductor compiles for minutes: by name only"
    split = split_network(small_net(), "3", (32, 32))
    build = CompileConfig(Target(), "point", "eager", "fp32", CPU, 1 << 28)
    assert select_first_working(split, build, ("tensorrt", "eager")).config.backend == "eager"
    assert "skipped: backend 'tensorrt'" in caplog.text
    assert "eager in fp32 is used instead" in caplog.text
