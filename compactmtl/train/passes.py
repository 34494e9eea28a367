"""From one forward pass to gradients: through one scalar, or task by task where the balancer compares gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.balancing import Balancer, GradientBalancer, balanced_backward
from compactmtl.balancing.pta import PseudoTasks
from compactmtl.data.base import Batch
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel


@dataclass(frozen=True)
class Pass:
    """What a forward pass leaves for the backward one: features as the heads read them, target and loss of each task,
    and penalties that are added after balancing."""

    batch: Batch
    image: Tensor
    features: Any
    targets: dict[str, Tensor]
    losses: dict[str, Tensor]
    penalties: dict[str, Tensor] = field(default_factory=dict)


def branch(features: Any) -> Any:
    """Features as views, none of which is computed from another: gradients by them add up to the encoder's."""
    if isinstance(features, Tensor):
        return features.view_as(features)
    if isinstance(features, Mapping):
        return {name: branch(part) for name, part in features.items()}
    return [branch(part) for part in features]


def backward(
    balancer: Balancer,
    model: MultiTaskModel,
    seen: Pass,
    total: Tensor,
    scaler: torch.amp.GradScaler,
    pseudo: PseudoTasks | None = None,
) -> None:
    """Fill `.grad`: of `total`, or of each loss that `seen` has where the balancer aggregates gradients.

    `pseudo` has further heads of the tasks, where they have any.

    Raises TrainingError naming a task whose gradient cannot be used.
    """
    scale = float(scaler.get_scale()) if scaler.is_enabled() else 1.0
    balancer.loss_scale = scale
    if not isinstance(balancer, GradientBalancer):
        scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return
    features = seen.features
    if isinstance(features, Mapping):
        if balancer.at == "features":
            raise ConfigError(
                "balancing.at: features are not shared where each task has its own", "use shared_parameters"
            )
        features = []
    own = {name: list(head.parameters()) for name, head in model.heads.items()}
    if pseudo is not None:
        for name, parameters in own.items():
            parameters += [parameter for head in pseudo.heads(name) for parameter in head.parameters()]
    late = getattr(model.encoder, "attention", None)
    balanced_backward(
        balancer,
        seen.losses,
        [features] if isinstance(features, Tensor) else list(features),
        model.encoder.parameters(),
        own,
        late=late.parameters() if isinstance(late, nn.Module) else (),
        penalty=torch.stack(list(seen.penalties.values())).sum() if seen.penalties else None,
        scale=scale,
    )
