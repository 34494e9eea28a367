"""The balancer as a part of the step: task losses to one total, and gradients task by task where it compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compactmtl.balancing import Balancer, GradientBalancer, balanced_backward, still_statistics
from compactmtl.data.base import Batch
from compactmtl.distributed.processes import averaging
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.models.mtan import SharedAttention
from compactmtl.train.part import ForwardPass, Part, Setup, Training


class Balancing(Part):
    """Sets the total, fills the gradients, and looks at the losses again after the step where the balancer learns so."""

    name: ClassVar[str] = "balancer"
    logs: ClassVar[str] = "balancing"

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        current.total = self.balancer.combine(current.losses)
        if current.penalties:  # of parts before this one
            current.total = current.total + torch.stack(list(current.penalties.values())).sum()

    def after_step(self, training: Training, batch: Batch) -> None:
        if self.balancer.relooks:
            with torch.no_grad(), still_statistics(training.model):
                self.balancer.after_step(training.forward_pass(batch).losses)

    def end_epoch(self, training: Training) -> None:
        self.balancer.end_epoch()

    def report(self) -> Mapping[str, Any]:
        return self.balancer.log()

    def state_dict(self) -> Any:
        return self.balancer.state_dict()

    def load_state_dict(self, training: Training, state: Any) -> None:
        self.balancer.load_state_dict(state)

    def backward(
        self,
        model: MultiTaskModel,
        current: ForwardPass,
        total: Tensor,
        scaler: torch.amp.GradScaler,
        trained: Sequence[nn.Parameter],
    ) -> None:
        """Fill `.grad` of those that are `trained`: of `total`, or of each loss that `current` has where the balancer
        aggregates gradients. Of several processes all have the whole batch's gradients then.

        Raises TrainingError naming a task whose gradient cannot be used.
        """
        balancer = self.balancer
        scale = float(scaler.get_scale()) if scaler.is_enabled() else 1.0
        balancer.loss_scale = scale
        if not isinstance(balancer, GradientBalancer):
            with averaging(trained):
                scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            return
        features = current.features
        if isinstance(features, Mapping):
            if balancer.at == "features":
                raise ConfigError(
                    "balancing.at: features are not shared where each task has its own",
                    "use shared_parameters",
                )
            features = []
        own = {
            name: [*head.parameters(), *current.head_parameters.get(name, ())]
            for name, head in model.heads.items()
        }
        late = getattr(model.encoder, "attention", None)
        known = {id(p) for ps in (model.encoder.parameters(), *own.values()) for p in ps}
        balanced_backward(
            balancer,
            current.losses,
            [features] if isinstance(features, Tensor) else list(features),
            model.encoder.parameters(),
            own,
            late=late.parameters() if isinstance(late, SharedAttention) else (),
            penalty=torch.stack(list(current.penalties.values())).sum() if current.penalties else None,
            others=[parameter for parameter in trained if id(parameter) not in known],
            scale=scale,
        )


def build_balancing(setup: Setup) -> Balancing:
    """The recipe's balancer, which every run has."""
    return Balancing(setup.balancer)
