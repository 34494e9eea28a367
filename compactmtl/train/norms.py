"""Running statistics of BatchNorm: frozen where the recipe says so, or estimated anew once channels have been removed.

While channels go, what the layers after them see changes, and the running means of BatchNorm lag behind: they are still
partly of the wider network. Here they are replaced by plain averages over some training batches with the weights as they
are. Source: arXiv:2105.07576, section 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compactmtl.config import Recipe
from compactmtl.data.inputs import parts
from compactmtl.distributed.sums import joined
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.sparse import Sparsifier

ORDER = 0  # of the batches: epochs count from 1 and walk the data in orders of their own


def train_mode(model: nn.Module, recipe: Recipe) -> None:
    """Put a model into training mode; `train.batch_norm: frozen` leaves its norms in eval mode."""
    model.train()
    if recipe.train.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class NormEstimates(Part):
    """From the first removal on, estimates the statistics anew after every epoch, before the model is validated.

    The batches are the same ones each time, the first of an order of their own, augmented as in training. It depends on
    the weights alone and is without state: a run that is resumed at its validation comes to the same numbers.
    """

    def __init__(self, batches: int) -> None:
        """`batches` is how many training batches are averaged over, at most those of an epoch."""
        self._batches = batches

    @torch.no_grad()
    def before_validation(self, training: Training, model: MultiTaskModel) -> None:
        sparsifier = training.part(Sparsifier)
        if sparsifier is None or not any(flags.any() for flags in sparsifier.dead()):
            return
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            return
        modes = [(module, module.training) for module in model.modules()]
        moments = [norm.momentum for norm in norms]
        counts = [None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms]
        model.eval()  # dropout and stochastic depth stay out, and no random number is drawn
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        try:
            for batch in training.batches(ORDER, 0, self._batches):
                with joined(), training.autocast():
                    model(*parts(training.image(batch)))
        finally:
            for norm, momentum, count in zip(norms, moments, counts, strict=True):
                norm.momentum = momentum
                if count is not None and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.copy_(count)
            model.train(
                modes[0][1]
            )  # over-parameterized layers forget the weight that they kept for evaluation
            for module, mode in modes:
                module.training = mode


def build_norm_estimates(setup: Setup) -> NormEstimates | None:
    """The recipe's `sparsity.norm_batches`, or None.

    Raises ConfigError where `train.batch_norm` is frozen beside what needs the batch's statistics.
    """
    _check_frozen(setup.recipe)
    config = setup.recipe.sparsity
    if config is None or config.norm_batches is None:
        return None
    return NormEstimates(min(config.norm_batches, setup.steps_per_epoch))


def _check_frozen(recipe: Recipe) -> None:
    if recipe.train.batch_norm != "frozen":
        return
    sparsity, overparam, data = recipe.sparsity, recipe.overparam, recipe.data
    moved = {
        "sparsity.norm_batches": sparsity is not None and sparsity.norm_batches is not None,
        "overparam.kind: repvgg": overparam is not None and overparam.kind == "repvgg",
        "data.mixing.batch_norm: per_source": bool(data.sources) and data.mixing.batch_norm == "per_source",
    }
    for key, there in moved.items():
        if there:
            raise ConfigError(
                f"train.batch_norm is frozen, and {key} takes statistics of batches",
                "leave one of the two out",
            )
