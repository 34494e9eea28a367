"""An average of the weights over the steps, which is validated and deployed in place of the last ones.

Decay and update are timm's ModelEmaV3. Source: arXiv:1803.05407 (averages of weights), with exponential weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.utils.model_ema import ModelEmaV3

from compactmtl.config.recipe import EmaConfig
from compactmtl.data.base import Batch
from compactmtl.errors import ArtifactError
from compactmtl.graph.copies import copy_model
from compactmtl.loops.averages import mask
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.slice_plan import Kept, cut
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.sparse import Sparsifier

# timm's default: after 300 steps the average is over about the last 45, after 3,000 over the last 200
POWER = 2 / 3


class WeightAverage(Part):
    """The exponential moving average of a model in training; `model` holds it, of the same modules.

    After each step average ← d·average + (1 − d)·weights. Floating buffers, such as a norm's running statistics, are
    averaged with the weights that they were seen with; counters are copied. Factors of over-parameterized layers are
    averaged one by one, so that the average contracts like the model.

    In a sparse recipe a weight that is exactly 0 is exactly 0 in the average too, so that surgery removes of the average
    what it would remove of the model. When the recipe's target is reached the average begins anew: what came before
    is of a larger network.
    """

    name: ClassVar[str] = "ema"

    def __init__(self, config: EmaConfig, model: MultiTaskModel, *, sparse: bool = False) -> None:
        self._config = config
        self._sparse = sparse
        self._reached = False
        self._updates = 0
        self._average = self._of(model)

    @property
    def model(self) -> MultiTaskModel:
        """The average, at the network's size now; not to be trained."""
        module = self._average.module
        assert isinstance(module, MultiTaskModel)
        return module

    @property
    def decay(self) -> float:
        """d of the next update."""
        # timm counts from 1, and takes the weights as they are at the first
        return float(self._average.get_decay(self._updates + 1))

    def _of(self, model: MultiTaskModel) -> ModelEmaV3:
        average = ModelEmaV3(
            copy_model(model),
            decay=self._config.decay,
            use_warmup=self._config.warmup,
            warmup_power=POWER,
        )
        # Over-parameterized layers in eval mode keep a contracted weight, which an update would leave behind.
        average.module.train().requires_grad_(False)
        return average

    @torch.no_grad()
    def after_step(self, training: Training, batch: Batch) -> None:
        sparsifier = training.part(Sparsifier)
        if sparsifier is not None and sparsifier.eligible and not self._reached:
            self._reached, self._updates = True, 0
        self._updates += 1
        self._average.update(training.model, step=self._updates)
        if self._sparse:
            mask(self.model, training.model)

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        before = self.model.state_dict()
        self._average = self._of(model)
        self.model.load_state_dict({name: cut(name, value, kept) for name, value in before.items()})

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._updates,
            "reached": self._reached,
            "average": dict(self.model.state_dict()),
        }

    def load_state_dict(self, training: Training, state: Any) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for the average of another network."""
        try:
            self.model.load_state_dict(state["average"])
        except RuntimeError as error:
            raise ArtifactError(
                f"the saved average of the weights is of another network: {str(error).splitlines()[-1].strip()}",
                "resume with the same recipe",
            ) from error
        self._updates, self._reached = int(state["updates"]), bool(state["reached"])


def build_average(setup: Setup) -> WeightAverage | None:
    """The recipe's `train.ema`, or None."""
    config = setup.recipe.train.ema
    if config is None:
        return None
    return WeightAverage(config, setup.model, sparse=setup.recipe.sparsity is not None)
