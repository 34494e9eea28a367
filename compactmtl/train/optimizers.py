"""Optimizers by name, their parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compactmtl.config.recipe import EncoderConfig, OptimizerConfig, ScheduleConfig
from compactmtl.models import MultiTaskModel
from compactmtl.models.features import encoder_name
from compactmtl.models.layer_groups import layers_behind
from compactmtl.overparam import factorized_layers

ONE_CYCLE_START = 1 / 25  # the first rate as a share of the peak. Source: arXiv:1708.07120, torch's default


def build_scaler(autocast: str, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler of float16, which scales nothing otherwise."""
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == "float16")
    # Torch makes its scale with the first loss that it is given, and who takes gradients of several losses gives it none.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def build_optimizer(config: OptimizerConfig, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer over parameter groups; a group's own `weight_decay` wins over the recipe's."""
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        return torch.optim.SGD(list(groups), momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # one kernel for all of a tensor's arithmetic: 4x faster on the CPU than the default
    return kind(list(groups), betas=config.betas, fused=True, **common)


def rate(config: ScheduleConfig, step: int, total: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`, as a share of the peak.

    `one_cycle` rises by a cosine from 1/25, the others linearly from 0 without ever being 0; after
    the warm-up `constant` stays and the others fall by a cosine to `final` at the last step. Each restart
    begins this again over the steps up to the next one.
    """
    marks = [0, *(round(share * total) for share in config.restarts), total]
    phase = max(index for index, mark in enumerate(marks[:-1]) if index == 0 or mark <= step)
    share = _in_phase(config, step - marks[phase], marks[phase + 1] - marks[phase])
    return share * (config.restart_peak if phase else 1.0)


def _in_phase(config: ScheduleConfig, step: int, total: int) -> float:
    warmup = round(config.warmup * total)
    if step < warmup:
        if config.name == "one_cycle":
            return _cosine(ONE_CYCLE_START, 1.0, step / warmup)
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    # the last step, total - 1, lies at 1 - 1/(total - warmup): a rate of 0 would waste it
    return _cosine(1.0, config.final, min(1.0, (step - warmup) / max(1, total - warmup)))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def build_schedule(config: ScheduleConfig, optimizer: Optimizer, total: int) -> LambdaLR:
    """`rate` as a torch scheduler, stepped once after every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate(config, step, total))


def rate_scales(config: OptimizerConfig, encoder: EncoderConfig, model: MultiTaskModel) -> dict[str, float]:
    """Learning rates as shares of the recipe's, by name of the parameter, where they differ: the encoder's.

    `encoder_scale` times `layer_decay` to the power of the layers behind. Source: arXiv:1801.06146, section 3.2
    (discriminative fine-tuning); arXiv:2106.08254 (by block). Empty where the recipe asks for one rate.
    """
    if not config.uneven:
        return {}
    behind = layers_behind(encoder, model.encoder)
    return {
        f"{encoder_name(model)}.{name}": config.encoder_scale * config.layer_decay**count
        for name, count in behind.items()
    }


def parameter_groups(
    model: nn.Module,
    weighing: nn.Module,
    undecayed: frozenset[str],
    *,
    lr: float = 1.0,
    factor_lr: float | None = None,
    scales: Mapping[str, float] | None = None,
    diagonals: bool = True,
) -> list[dict[str, Any]]:
    """The model's parameters with and without weight decay, factors at a rate of their own, and the balancer's.

    No decay on biases, norms and the factors' diagonals (they don't overfit, and decay fights BatchNorm's
    scale) nor on those that `undecayed` names. The diagonals are left out where another pass trains them. `scales` are
    factors of `lr`, the rate of all, and of `factor_lr`, by name of the parameter.
    """
    scales = scales or {}
    layers = factorized_layers(model).values()
    own = {id(layer.diagonals) for layer in layers}
    factors = {id(one) for layer in layers for one in layer.factors().values()} if factor_lr else set()
    kinds: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in own and not diagonals:
            continue
        decays = parameter.ndim > 1 and name not in undecayed and id(parameter) not in own
        kind = (id(parameter) in factors, decays, scales.get(name, 1.0))
        kinds.setdefault(kind, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            **({"lr": (factor_lr if factor and factor_lr else lr) * scale} if factor or scale != 1 else {}),
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (factor, decays, scale), parameters in sorted(kinds.items(), key=lambda one: one[0], reverse=True)
    ]
    weights = list(weighing.parameters())
    if weights:
        groups.append({"params": weights, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
