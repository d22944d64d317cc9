"""Stores the best state of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from engine.finetuning.trainer import Learner


class BestState:
    """The state of a learner after its best epoch."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._weights = learner.state_dict()
        self._score, self._loss, self._least_loss = -1.0, 0.0, math.inf
        self.epochs_since = 0
        """Number of epochs since the last improvement."""

    @classmethod
    def restored(cls, learner: Learner, state: Mapping[str, Any]) -> Self:
        """Restore the best state of an interrupted training from a ``state_dict``."""
        best = cls(learner)
        best._weights = dict(state["weights"])
        best._score, best._loss, best._least_loss = state["score"], state["loss"], state["least_loss"]
        best.epochs_since = state["epochs_since"]
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return the object's content as tensors and numbers."""
        return {
            "weights": self._weights, "score": self._score, "loss": self._loss, "least_loss": self._least_loss,
            "epochs_since": self.epochs_since,
        }  # fmt: skip

    def measure(self) -> None:
        """Evaluate the initial state and store its score, so that training must improve it."""
        self._loss, self._score = self._learner.evaluate()

    def update(self, score: float, loss: float, *, improve_on_loss: bool) -> bool:
        """Store the learner's state if it is better than the best state; return whether it is."""
        is_best = (score, -loss) > (self._score, -self._loss)
        improved = is_best or (improve_on_loss and loss < self._least_loss)
        self._least_loss = min(self._least_loss, loss)
        self.epochs_since = 0 if improved else self.epochs_since + 1
        if is_best:
            self._score, self._loss, self._weights = score, loss, self._learner.state_dict()
        return is_best

    def restore(self) -> None:
        """Load the best state into the learner."""
        self._learner.load_state_dict(self._weights)
