"""What does not go with `train.accumulate`, `train.checkpoint_activations` and `train.compile`: how a batch passes the network."""

from __future__ import annotations

from compactmtl.config.balancing import BalancingConfig, RegularizationConfig
from compactmtl.config.train import TrainConfig


def check_passes(
    train: TrainConfig,
    balancing: BalancingConfig,
    regularization: RegularizationConfig,
    *,
    batch_size: int,
    by_source: bool,
) -> None:
    """Raise ValueError, naming both keys, where one of the three cannot do exactly what another key of a recipe asks for.

    `by_source` says that batch norm has statistics of each data set.
    """
    if train.accumulate > batch_size:
        raise ValueError(
            f"train.accumulate: {train.accumulate} parts of a batch of {batch_size} images (data.batch_size); give at most as "
            "many parts as images"
        )
    twice = "takes a gradient of a gradient through the whole network"
    slopes = {
        "regularization.input_gradient": regularization.input_gradient is not None and twice,
        "regularization.weight_gradient": regularization.weight_gradient is not None and twice,
    }
    sources = {"data.mixing.batch_norm: per_source": by_source and "has statistics of a batch's sources"}
    mixup = {"train.mixup": train.mixup is not None and "mixes images of the whole batch"}
    features = {
        "balancing.at: features": balancing.at == "features" and "needs the graph of the whole batch at once"
    }
    again = {
        "train.checkpoint_activations": train.checkpoint_activations
        and "computes blocks again, while torch.compile decides itself what it keeps"
    }
    refused: dict[str, tuple[bool, dict[str, str | bool]]] = {
        "train.accumulate": (train.accumulate > 1, {**slopes, **sources, **mixup, **features}),
        "train.checkpoint_activations": (train.checkpoint_activations, {**sources}),
        "train.compile": (train.compile is not False, {**slopes, **sources, **again}),
    }
    for key, (asked, others) in refused.items():
        for other, why in others.items():
            if asked and why:
                raise ValueError(f"{key}: not beside {other}, which {why}; leave one of the two out")
