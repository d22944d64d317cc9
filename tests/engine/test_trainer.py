"""The training loop."""

import numpy as np
import pytest
import torch

from engine.finetuning.metrics import confusion, wilson_interval
from engine.finetuning.trainer import TrainingConfig, class_weights, train
from pipeline.errors import ModelError


def ignore(_):
    return None


class ScriptedTrainable:
    """Improves until its third epoch, then gets worse."""

    rng = None

    def __init__(self):
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.visited, self.epoch = [], 0

    def param_groups(self, learning_rate):
        return [{"params": [self.bias], "lr": learning_rate}]

    def logits(self, indices, *, augment):
        if augment:
            self.visited += indices.tolist()
            return torch.stack([torch.zeros(len(indices)), self.bias.expand(len(indices))], 1)
        self.epoch += 1
        correct = 4 - abs(self.epoch - 3)
        predictions = [index % 2 if row < correct else 1 - index % 2 for row, index in enumerate(indices.tolist())]
        return torch.nn.functional.one_hot(torch.tensor(predictions), 2).float()

    def state_dict(self):
        return {"epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state):
        self.restored = int(state["epoch"])


def run(trainable, config, classes=(0, 1) * 4, **options):
    """Train with the first four images for validation."""
    indices = np.arange(len(classes))
    return train(trainable, np.array(classes), indices[4:], indices[:4], config, seed=0, on_epoch=ignore, **options)


def test_class_weights_are_larger_for_rare_classes_with_mean_1():
    classes = np.array([0] * 6 + [1] * 2)
    weights = class_weights(classes, "weights")
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert float(weights[torch.from_numpy(classes)].mean()) == pytest.approx(1.0)
    assert class_weights(classes, "sampler") is None


def test_wilson_interval_has_published_values():
    assert wilson_interval(0.9, 10) == pytest.approx((0.596, 0.982), abs=1e-3)
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 1998
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1.0, 3)[1] == 1.0


def test_confusion_counts_true_classes_in_rows():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3) == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_train_restores_the_best_epoch_and_stops_after_the_patience():
    trainable = ScriptedTrainable()
    history = run(trainable, TrainingConfig(20, 3, 0.1, patience=2), (0, 1, 0, 1, 0, 0, 0, 0, 0, 1))
    assert [epoch.best for epoch in history] == [True, True, True, False, False]
    assert trainable.restored == 3
    assert trainable.visited.count(9) == 5 * 3  # the only image of its class: as often as the five others together


def test_train_draws_every_image_once_without_a_sampler():
    trainable = ScriptedTrainable()
    run(trainable, TrainingConfig(1, 3, 0.1, patience=2, balance="none"), (0, 1, 0, 1, 0, 0, 0, 0, 0, 1))
    assert sorted(trainable.visited) == list(range(4, 10))


def test_train_counts_a_smaller_loss_as_an_improvement_if_configured():
    class MoreConfident(ScriptedTrainable):
        """All images are just correct at first; later one is just wrong and the others become more certain."""

        def logits(self, indices, *, augment):
            if augment:
                return super().logits(indices, augment=True)
            self.epoch += 1
            margins = [0.1 if self.epoch == 1 else -0.01 if row == 0 else self.epoch for row in range(len(indices))]
            signs = [2 * (int(index) % 2) - 1 for index in indices]
            return torch.tensor([[0.0, margin * sign] for margin, sign in zip(margins, signs, strict=True)])

    for improve_on_loss, epochs in ((False, 3), (True, 12)):
        trainable = MoreConfident()
        config = TrainingConfig(12, 2, 0.1, patience=2, improve_on_loss=improve_on_loss)
        assert len(run(trainable, config)) == epochs
        assert trainable.restored == 1


def test_train_keeps_the_initial_state_of_a_warm_start_if_no_epoch_is_better():
    trainable = ScriptedTrainable()
    trainable.epoch = 2
    config = TrainingConfig(20, 2, 0.1, patience=2)
    history = run(trainable, config, (0, 1, 0, 1, 0, 0, 1, 1), warm_start=True)
    assert [epoch.best for epoch in history] == [False, False]
    assert trainable.restored == 2


def test_train_restores_the_best_epoch_when_the_loss_diverges():
    class Diverging(ScriptedTrainable):
        def __init__(self, finite_epochs):
            super().__init__()
            self.finite_epochs = finite_epochs

        def logits(self, indices, *, augment):
            logits = super().logits(indices, augment=augment)
            return logits * float("nan") if augment and self.epoch >= self.finite_epochs else logits

    config = TrainingConfig(20, 2, 0.1, patience=9)
    trainable = Diverging(2)
    assert len(run(trainable, config)) == trainable.restored == 2
    with pytest.raises(ModelError, match="choose a lower --learning-rate"):
        run(Diverging(0), config)


def test_train_restores_the_best_epoch_when_stopped():
    trainable = ScriptedTrainable()
    answers = iter([False] * 5 + [True] * 100)
    history = run(trainable, TrainingConfig(20, 2, 0.1, patience=9), stop=lambda: next(answers))
    assert len(history) == 2
    assert trainable.restored == 2


def test_train_limits_the_gradient_norm():
    class Steep(ScriptedTrainable):
        def logits(self, indices, *, augment):
            return super().logits(indices, augment=augment) * (1e4 if augment else 1.0)

    for limit in (None, 0.5):
        trainable = Steep()
        config = TrainingConfig(1, 8, 0.1, 1, balance="none", max_gradient_norm=limit)
        run(trainable, config, (0, 1, 0, 1, 0, 0, 0, 1))
        assert (float(trainable.bias.grad.norm()) <= 0.5 + 1e-6) == (limit is not None)
