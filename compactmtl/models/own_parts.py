"""An encoder or a head of the user's own: a class that a recipe names as `package.module:Class`.

An encoder is called with the images (B, C, H, W) and gives one vector (B, C), one map (B, C, h, w), or a list of maps from
the finest to the coarsest. A head is built with `in_channels`, the channels of what it reads, and `channels`, those of the
task's output, and called as head(features, (H, W)). A head class with `needs = "pyramid"` reads all maps: `in_channels` is
then a list, and features are one too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compactmtl.config.encoder import EncoderConfig
from compactmtl.config.model import HeadConfig
from compactmtl.config.trust import import_class, own_errors
from compactmtl.errors import ConfigError
from compactmtl.models.features import BuiltEncoder, FeatureMap, Needs
from compactmtl.models.listing import networks_of
from compactmtl.models.user_code import construct
from compactmtl.models.whole_weights import load_whole

_NAME = "model.encoder.name"


class OwnHead(nn.Module):
    """A head of the user's own, and the fixed function that its task puts behind a last layer."""

    def __init__(self, head: nn.Module, output: nn.Module | None, needs: Needs) -> None:
        super().__init__()
        self.needs = needs
        self.head = head
        self.output = nn.Identity() if output is None else output

    def forward(self, features: Tensor | Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        return self.output(self.head(features, size))  # type: ignore[no-any-return]


def own_needs(name: str, key: str) -> Needs:
    """What of the encoder's maps a head class of the user's own reads. Raises as `construct` does."""
    needs: Needs = getattr(import_class(name, key, networks_of, "networks"), "needs", "last")
    if needs not in ("last", "pyramid"):
        raise ConfigError(f"{key}: {name}.needs is {needs!r}", 'give it "last" or "pyramid", or leave it out')
    return needs


def build_own_head(
    key: str,
    in_channels: int,
    channels: int,
    config: HeadConfig,
    maps: Sequence[FeatureMap],
    output: nn.Module | None,
) -> OwnHead:
    """The head class `config.kind`. Raises as `construct` does."""
    needs = own_needs(config.kind, f"{key}.kind")
    reads: int | list[int] = [one.channels for one in maps] if needs == "pyramid" else in_channels
    given = {"in_channels": reads, "channels": channels}
    return OwnHead(
        construct(config.kind, f"{key}.kind", f"{key}.options", config.options, given), output, needs
    )


def build_own_encoder(
    config: EncoderConfig,
    size: tuple[int, int],
    image_channels: int = 3,
    *,
    dense: bool,
    needs: Needs,
    initialize: bool,
) -> BuiltEncoder:
    """The encoder class `config.name`, with `config.weights` where there are some.

    Raises ConfigError, beside what `construct` raises, where it gives something else than heads read, and for keys that
    only timm's networks have.
    """
    if config.output_stride is not None:
        raise ConfigError(
            f"model.encoder.output_stride: {config.name} is a class of your own",
            "remove output_stride, and let the class take its stride in model.encoder.options",
        )
    if config.pretrained:
        raise ConfigError(
            f"model.encoder.pretrained: {config.name} is a class of your own, whose weights timm does not have",
            "give its weights as model.encoder.weights",
        )
    if needs == "blocks":
        raise ConfigError(
            f"{_NAME}: a mtan head looks into the blocks of an encoder, and {config.name} is a class of your own",
            "use another kind of head",
        )
    network = construct(config.name, _NAME, "model.encoder.options", config.options)
    if initialize and config.weights is not None:
        load_whole(network, config.weights, key="model.encoder.weights", parts=("encoder.",))
    shapes = _shapes(network, config.name, (image_channels, *size))
    if needs == "pyramid" and len(shapes) < 2:
        raise ConfigError(
            f"{_NAME}: {config.name} gives one map, and a head of the recipe reads several",
            "give a list of maps, from the finest to the coarsest, or use a head of kind fcn or deeplabv3",
        )
    ranks = {len(shape) for shape in shapes}
    wanted = {4} if dense or len(shapes) > 1 else {2, 4}
    if not ranks <= wanted:
        raise ConfigError(
            f"{_NAME}: {config.name} gives {', '.join(str(tuple(shape)) for shape in shapes)}",
            "give maps (B, C, h, w)" + ("" if dense else ", or one vector (B, C)"),
        )
    maps = tuple(
        FeatureMap(shape[1], max(1, round(size[0] / shape[2]))) for shape in shapes if len(shape) == 4
    )
    return BuiltEncoder(network, shapes[-1][1], 4 in ranks, maps)


def _shapes(network: nn.Module, name: str, size: tuple[int, int, int]) -> list[torch.Size]:
    """Shapes of the outputs for one image; the network is left as it was. Raises ConfigError where it cannot run."""
    probe = copy.deepcopy(network).eval()
    what = f"{_NAME}: {name} cannot take {size[0]} channels and {size[1]}x{size[2]} pixels"
    mend = "mend its forward, which is given images (B, C, H, W), or change data.size"
    with own_errors(what, mend), torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = probe(torch.zeros(1, *size))
    maps = [given] if isinstance(given, Tensor) else given
    if not isinstance(maps, list | tuple) or not maps or not all(isinstance(one, Tensor) for one in maps):
        raise ConfigError(
            f"{_NAME}: {name} gives a {type(given).__name__}",
            "give one tensor, or a list of maps from the finest to the coarsest",
        )
    return [one.shape for one in maps]
