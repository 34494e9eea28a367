"""The shared trunk: any timm model by name or SegNet, giving one vector an image or feature maps."""

from __future__ import annotations

import copy
import inspect
import re
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from compactmtl.config.recipe import EncoderConfig
from compactmtl.config.trust import is_class_name
from compactmtl.config.validate import validate_options
from compactmtl.errors import ConfigError, machine_fault
from compactmtl.models.features import BuiltEncoder, FeatureMap, Needs
from compactmtl.models.mtan import BlockMaps
from compactmtl.models.own_parts import build_own_encoder
from compactmtl.models.segnet import SMALLEST, SegNet, SegNetOptions
from compactmtl.models.weights import fetch_pretrained, load_encoder_weights, load_segnet_weights

SEGNET = "segnet"

# Arguments of timm.create_model that the recipe sets elsewhere, or that would load more than plain weights.
RESERVED = {
    "cache_dir": "set HF_HOME in the environment",
    "checkpoint_path": "set model.encoder.weights to a .safetensors file",
    "feature_cls": "the encoder gives one map; pick it with out_index",
    "features_only": "it follows from the heads of the tasks",
    "in_chans": "set data.channels",
    "num_classes": "classes belong to the tasks",
    "out_indices": "pick one map with out_index",
    "output_stride": "set model.encoder.output_stride",
    "pretrained": "set model.encoder.pretrained",
    "pretrained_cfg": "name the pretrained tag in model.encoder.name, such as resnet18.a1_in1k",
    "pretrained_cfg_overlay": "set model.encoder.weights to a .safetensors file",
}


# what timm's code raises where an argument is none of its own or of a wrong value
_REFUSALS = (
    AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
    ZeroDivisionError,
)  # fmt: skip


class ChannelsFirst(nn.Module):
    """Turns the (B, h, w, C) maps of a channels-last network into (B, C, h, w)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(image)
        return [x.permute(0, 3, 1, 2).contiguous() for x in maps]


def build_encoder(
    config: EncoderConfig,
    size: tuple[int, int],
    *,
    dense: bool,
    needs: Needs = "last",
    initialize: bool = True,
    channels: int = 3,
) -> BuiltEncoder:
    """The timm network `config.name`, `segnet`, or a class of the user's own, for images (B, channels, *size).

    `dense` asks for feature maps, else for the pooled features that timm would give its own classifier. `needs` says
    which: the last one (or the one at `options.out_index`), all up to it, or two a stage, for attention. Weights come
    from the file `config.weights` where there is one, else from timm's download where `config.pretrained`, else at
    random; without `initialize` always at random, for a model whose weights are about to be loaded. Weights of RGB are
    adapted to another number of channels as timm does it: added up for one channel, else repeated and scaled.

    Raises ConfigError for an unknown name, option or file, for a size that the network cannot take and maps that it
    cannot give; ArtifactError for a file that does not hold the network's weights; MissingDependencyError where a
    download fails.
    """
    if config.name == SEGNET:
        return _build_segnet(config, size, channels, dense=dense, needs=needs, initialize=initialize)
    if is_class_name(config.name):
        return build_own_encoder(config, size, channels, dense=dense, needs=needs, initialize=initialize)
    options = _options(config, size, dense, needs, channels)
    create = partial(_create, config.name, options, needs == "blocks")
    if initialize and config.weights is not None:
        network = load_encoder_weights(config, options, create)
    elif initialize and config.pretrained:
        network = fetch_pretrained(config.name, create)
    else:
        network = create()
    shapes = _output_shapes(network, config.name, (channels, *size))
    if any(len(shape) != (4 if dense else 2) for shape in shapes):
        raise ConfigError(
            f"model.encoder.name: {config.name} gives an output of {len(shapes[-1])} dimensions {tuple(shapes[-1])}, "
            f"needs {4 if dense else 2}",
            "choose an encoder that gives feature maps"
            if dense
            else "choose an encoder with a pooled output",
        )
    width = shapes[-1][1]
    if isinstance(network, BlockMaps):
        return BuiltEncoder(network, width, dense, network.maps(shapes), network.expansion)
    # As timm says: an odd size tells no stride.
    strides = _feature_info(network).reduction() if dense else ()
    maps = tuple(FeatureMap(shape[1], stride) for shape, stride in zip(shapes, strides, strict=dense))
    return BuiltEncoder(network, width, dense, maps)


def _build_segnet(
    config: EncoderConfig,
    size: tuple[int, int],
    channels: int,
    *,
    dense: bool,
    needs: Needs,
    initialize: bool,
) -> BuiltEncoder:
    """SegNet with weights of the first half as the recipe says. Raises ConfigError as build_encoder does."""
    options = validate_options(SegNetOptions, config.options, "model.encoder.options")
    if not dense:
        raise ConfigError(
            "model.encoder.name: segnet gives a map at the image's size and no task reads one",
            "choose a timm encoder for tasks of one value an image",
        )
    if config.output_stride is not None:
        raise ConfigError("model.encoder.output_stride: segnet's is 1", "remove output_stride")
    if min(size) < SMALLEST:
        raise ConfigError(
            f"model.encoder.name: segnet cannot take images of {size[0]}x{size[1]}",
            f"give data.size {SMALLEST} pixels a side or more",
        )
    network = SegNet(options, blocks=needs == "blocks", channels=channels)
    if initialize and (config.weights is not None or config.pretrained):
        load_segnet_weights(network, config)
    return BuiltEncoder(network, network.widths[0], True, network.maps, network.expansion)


def _options(
    config: EncoderConfig, size: tuple[int, int], dense: bool, needs: Needs, channels: int
) -> dict[str, Any]:
    """Arguments of timm.create_model. Raises ConfigError for an unknown model or an option that is not the user's."""
    check_encoder_name(config.name)
    options: dict[str, Any] = dict(config.options)
    out_index = options.pop("out_index", None)
    for name in options:
        if name in RESERVED:
            raise ConfigError(f"model.encoder.options.{name} is not an option", RESERVED[name])
    if out_index is not None and (isinstance(out_index, bool) or not isinstance(out_index, int)):
        raise ConfigError(
            f"model.encoder.options.out_index: expected an integer, found {out_index!r}",
            "0 is the first feature map, -1 the last",
        )
    if config.output_stride is not None:
        options["output_stride"] = config.output_stride
    if channels != 3:
        options["in_chans"] = channels
    if out_index is not None and (not dense or needs == "blocks"):
        raise ConfigError(
            "model.encoder.options.out_index: "
            + ("a mtan head reads every stage" if dense else "no task reads a feature map"),
            "remove it" + ("" if dense else ", or give a task a head of kind fcn"),
        )
    if _fixed_size(config.name) and "img_size" not in options and not options.get("dynamic_img_size"):
        options["img_size"] = size
    if not dense:
        options["num_classes"] = 0
        return options
    options["features_only"] = True
    last = -1 if out_index is None else out_index
    if needs == "last":
        options["out_indices"] = (last,)
    elif out_index is not None:
        count = len(_feature_info(timm.create_model(config.name, **options)).channels())
        # One out of range goes to timm, which says so.
        options["out_indices"] = tuple(range(last % count + 1)) if -count <= last < count else (last,)
    return options


def check_encoder_name(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm's registry has the model and the pretrained tag."""
    if name == SEGNET or is_class_name(name):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"model.encoder.name: timm has no model {name!r}",
            f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names",
        )
    if tag and (tags := timm.list_pretrained(f"{architecture}.*")) and name not in tags:
        raise ConfigError(
            f"model.encoder.name: timm has no weights {tag!r} of {architecture}", f"it has {', '.join(tags)}"
        )


def _fixed_size(name: str) -> bool:
    """Whether the network is built for one image size, such as one with position embeddings."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def _create(name: str, options: dict[str, Any], blocks: bool = False, **pretrained: Any) -> nn.Module:
    """timm.create_model, its maps channels first, its complaints about arguments as ConfigError.

    With `blocks` it gives two maps a stage. Raises ConfigError where it cannot.
    """
    try:
        module: nn.Module = timm.create_model(name, **options, **pretrained)
    except _REFUSALS as error:
        if machine_fault(error) is not None:
            raise
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise _refused_option(name, error) from error
        if pretrained:
            _create(name, options, blocks)  # raises where the arguments are at fault
            raise  # the download is: the caller tells what went wrong
        raise _refused_value(name, options, error) from error
    if blocks:
        return BlockMaps.of(module, name)
    channels_last = options.get("features_only") and str(getattr(module, "output_fmt", "")) == "Format.NHWC"
    return ChannelsFirst(module) if channels_last else module


def _refused_value(name: str, options: dict[str, Any], error: Exception) -> ConfigError:
    """An argument that timm knows and cannot use; it is named where the network can be built without it."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    for option, value in options.items():
        if option in RESERVED or option == "img_size":
            continue
        try:
            with torch.device("meta"):
                timm.create_model(name, **{key: kept for key, kept in options.items() if key != option})
        except _REFUSALS:
            continue
        return ConfigError(
            f"model.encoder.options.{option}: timm cannot build {name} with {value!r}: {said}",
            "give a value as timm's documentation of this model says, or leave the option out",
        )
    return ConfigError(
        f"model.encoder: timm cannot build {name} with {options}: {said}",
        "check output_stride and the options against timm's documentation of this model",
    )


def _refused_option(name: str, error: TypeError) -> ConfigError:
    # "... an unexpected keyword argument 'a'", "... unexpected keyword argument(s): ['a', 'b']"
    named = re.search(r"'([^']+)'", str(error).rpartition("argument")[2])
    option = named[1] if named else str(error)
    if option == "output_stride":
        return ConfigError(
            f"model.encoder.output_stride: {name} cannot be dilated",
            "remove output_stride, pick an earlier map with options.out_index, or choose a ResNet or EfficientNet",
        )
    # The message begins with the class that refused, such as "ResNet.__init__() got an unexpected ...".
    known = _arguments(str(error).partition(".")[0])
    close = get_close_matches(option, known, n=1)
    return ConfigError(
        f"model.encoder.options.{option}: {name} has no such option",
        f"did you mean {close[0]!r}?" if close else _listed(known),
    )


def _listed(known: list[str]) -> str:
    names = [name for name in known if name not in RESERVED and name not in ("self", "kwargs", "args", "cfg")]
    listed = f"its options are {', '.join(names)}; " if names else ""
    return f"{listed}see timm's documentation of this model"


def _arguments(class_name: str) -> list[str]:
    """Names of the arguments of a timm model class, none where the class is not found."""
    model = getattr(timm.models, class_name, None)
    return list(inspect.signature(model).parameters) if inspect.isclass(model) else []


def _feature_info(network: nn.Module) -> Any:
    """What timm says of the maps of a feature extractor."""
    return (network.body if isinstance(network, ChannelsFirst) else network).feature_info


def _output_shapes(network: nn.Module, name: str, image: tuple[int, int, int]) -> list[torch.Size]:
    """Shapes of the outputs for one image (C, H, W), worked out on the meta device: no arithmetic, the network untouched."""
    probe = copy.deepcopy(network).to("meta").eval()
    try:
        with torch.no_grad():
            outputs = probe(torch.empty(1, *image, device="meta"))
    except _REFUSALS as error:
        raise ConfigError(
            f"model.encoder.name: {name} cannot take images of {image[1]}x{image[2]}: {error}",
            "change data.size; some networks need a multiple of their stride or window",
        ) from error
    return [outputs.shape] if isinstance(outputs, Tensor) else [output.shape for output in outputs]
