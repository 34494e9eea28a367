"""The encoder's layers from the last to the first, for learning rates that fall layer by layer.

What counts as one layer is what timm says of a network (`group_matcher`): the stem, each block. Elsewhere it is each
part of a list or stage, such as `down.0`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.config.trust import is_class_name
from compactmtl.models.encoder import SEGNET
from compactmtl.models.mtan import SharedAttention
from compactmtl.models.multitask import TaskEncoders
from compactmtl.models.weights import ATTENTION_PREFIX

_WRAPPERS = ("body.", "model.")  # of ChannelsFirst, and of timm's extractor for transformers


def layers_behind(config: EncoderConfig, encoder: nn.Module) -> dict[str, int]:
    """How many of the encoder's layers come after each of its parameters, by name; 0 for the last layer.

    A factorized layer's parameters count as those of the layer that they replace. The attention that belongs to `mtan`
    heads is not among them. With an encoder for each task, each is counted on its own.
    """
    if isinstance(encoder, TaskEncoders):
        return {
            f"{task}.{name}": count
            for task, own in encoder.items()
            for name, count in layers_behind(config, own).items()
        }
    beside = ATTENTION_PREFIX if isinstance(getattr(encoder, "attention", None), SharedAttention) else None
    names = [name for name, _ in encoder.named_parameters() if not (beside and name.startswith(beside))]
    layers = _as_timm_says(config, names) or _by_name(names)
    last = max(layers.values(), default=0)
    return {name: last - layer for name, layer in layers.items()}


def _as_timm_says(config: EncoderConfig, names: Iterable[str]) -> dict[str, int] | None:
    """The number of each parameter's layer from the first; None where timm does not say."""
    if config.name == SEGNET or is_class_name(config.name):
        return None
    network = _whole(config)
    if not hasattr(network, "group_matcher"):
        return None
    grouped: Mapping[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    layers: dict[str, int] = {}  # of a parameter and of the modules that hold it, the last one's
    for name, layer in grouped.items():
        for prefix in _prefixes(name):
            layers[prefix] = max(layer, layers.get(prefix, layer))
    # a feature extractor may have the parts of a stage list as children: stages.0 as stages_0
    joined = {path.replace(".", "_"): path for path, _ in network.named_modules() if "." in path}
    found = {}
    for name in names:
        known = next((one for one in _prefixes(_in_whole(name, layers, joined)) if one in layers), None)
        if known is None:
            return None
        found[name] = layers[known]
    return found


def _whole(config: EncoderConfig) -> Any:
    """timm's whole network, of which the encoder may be a part. No random number of the caller's is used up."""
    options: dict[str, Any] = {key: value for key, value in config.options.items() if key != "out_index"}
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(config.name, **{**options, "num_classes": 0})


def _in_whole(name: str, known: Mapping[str, int], joined: Mapping[str, str]) -> str:
    """The name that a parameter of a feature extractor has, or would have, in the whole network."""
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper) and wrapper[:-1] not in known:
            name = name.removeprefix(wrapper)
    first, dot, rest = name.partition(".")
    return name if first in known else f"{joined.get(first, first)}{dot}{rest}"


def _prefixes(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _by_name(names: Iterable[str]) -> dict[str, int]:
    """A layer is what has one name up to its first number; in the order of registration."""
    layers: dict[str, int] = {}
    numbers = {}
    for name in names:
        parts = name.split(".")
        end = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
        layer = ".".join(parts[: end + 1])
        numbers[name] = layers.setdefault(layer, len(layers))
    return numbers
