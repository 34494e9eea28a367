"""Initial weights of an encoder: timm's download by name, a package of weights, or a local file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from compactmtl.artifacts.states import CodeError, read_state
from compactmtl.config.paths import PACKAGE_PREFIX
from compactmtl.config.recipe import EncoderConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError, first_line
from compactmtl.models import download
from compactmtl.models.packaged import is_foreign, package_file, package_of, to_timm
from compactmtl.models.segnet import STEM, SegNet, from_vgg

# Modules whose errors mean that a download did not come through.
NETWORK_PACKAGES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib")
LISTED = 8  # names that an error spells out
OWN_PREFIX = "encoder."  # of the encoder's weights in a checkpoint of a MultiTaskModel
ATTENTION_PREFIX = "attention."  # of layers that are put beside an encoder for its mtan heads
TORCH_SUFFIXES = (".pth", ".pt")
NESTED = ("state_dict", "model", "model_state_dict")  # keys under which checkpoints keep the weights
VGG = "vgg16_bn"  # whose convolutions are SegNet's first half


def fetch_pretrained(name: str, create: Callable[..., nn.Module]) -> nn.Module:
    """`create(pretrained=True)`, which downloads timm's weights of `name` or finds them in its cache.

    Raises ConfigError where timm has no weights of this model, MissingDependencyError where they cannot be fetched.
    """
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        raise ConfigError(
            f"model.encoder.pretrained: timm has no weights of {name}",
            "set pretrained: false, or model.encoder.weights to a local .safetensors file",
        )
    home, cached = download.weights_home(source)
    if cached:  # whether there is newer is not asked: the same recipe takes the same weights, on a plane too
        with download.from_cache():
            return _fetch(name, create)
    reason = "the environment says HF_HUB_OFFLINE" if download.told_offline() else download.unreachable(home)
    if reason:
        raise _not_fetched(name, reason)
    return _fetch(name, create)


def _fetch(name: str, create: Callable[..., nn.Module]) -> nn.Module:
    try:
        return create(pretrained=True)
    except Exception as error:
        if not any(_from_network(cause) for cause in _causes(error)):
            raise
        raise _not_fetched(name, first_line(error)) from error


def _not_fetched(name: str, reason: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the pretrained weights of {name} could not be fetched: {reason}",
        "connect to the network once (they are cached), or set model.encoder.weights to a local "
        ".safetensors file, or model.encoder.pretrained to false",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _from_network(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK_PACKAGES


def load_encoder_weights(
    config: EncoderConfig, options: Mapping[str, Any], create: Callable[..., nn.Module]
) -> nn.Module:
    """The encoder that `create()` gives, made by timm.create_model(config.name, **options), with `config.weights`.

    `config.weights` is a file, or `package:NAME` for one of `packaged.PACKAGES`. The file holds the network's weights
    under timm's own names (its classifier, and layers that the encoder does not
    have because it stops at an earlier map, are passed over), or a checkpoint of a MultiTaskModel, whose `encoder.`
    weights are taken. Position embeddings made for another image size are resized as timm does.

    Raises ConfigError where the file is missing or of another format, ArtifactError where it is damaged or a weight is
    missing, unknown or of another shape.
    """
    package = package_of(str(config.weights))
    path = Path(str(config.weights)) if package is None else package_file(package)
    if package is not None and config.name.partition(".")[0] != package.architecture:
        raise ConfigError(
            f"model.encoder.weights: {config.weights} holds the weights of {package.architecture}, not of {config.name}",
            f"set model.encoder.name: {package.architecture}",
        )
    state = read_weights(path)
    if any(key.startswith(OWN_PREFIX) for key in state):
        network = create()
        _load_own(path, config.name, state, network)
        return network
    # timm renames layers in a feature extractor, so names are held against the whole model,
    whole = {key: value for key, value in options.items() if key not in ("features_only", "out_indices")}
    reference = timm.create_model(config.name, **{**whole, "num_classes": 0})
    if is_foreign(state):
        whole_names = timm.create_model(config.name, **{**whole, "num_classes": 1}).state_dict()
        state = to_timm(state, whole_names)
    state = _without_classifier(state, reference)
    channels = whole.get("in_chans", 3)
    first = reference.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    stems = [f"{name}.weight" for name in ((first,) if isinstance(first, str) else first or ())]
    own = {"first_conv": None} if any(_inputs(state, name) == channels for name in stems) else {}
    if channels != 3 and not own:  # weights of RGB, which timm adapts
        whole.pop("in_chans")
        reference = timm.create_model(config.name, **{**whole, "num_classes": 0})
    resized = {
        key
        for key, value in reference.state_dict().items()
        if key in state and value.shape != state[key].shape
    }
    if resized and "img_size" in whole:
        # and shapes against the model at its own size: timm then resizes what depends on the size.
        whole.pop("img_size")
        reference = timm.create_model(config.name, **{**whole, "num_classes": 0})
    check_weights(path, config.name, state, reference.state_dict())
    # timm's own loading path, given the tensors in place of a download, applies the model's filter. No network has -1
    # classes: timm then leaves the classifier alone.
    network = create(pretrained=True, pretrained_cfg_overlay={"state_dict": state, "num_classes": -1, **own})
    for module in network.modules():
        if isinstance(source := getattr(module, "pretrained_cfg", None), dict):
            source.pop("state_dict", None)  # else every copy of the network would carry the file along
    return network


def _inputs(state: Mapping[str, Tensor], name: str) -> int | None:
    """How many channels a layer's weight reads; none where there is no such weight."""
    return state[name].shape[1] if name in state and state[name].ndim > 1 else None


def load_segnet_weights(network: SegNet, config: EncoderConfig) -> None:
    """Give `network` the weights of `config.weights`, or else VGG-16's from timm.

    The file holds VGG-16's weights under the names of timm or torchvision (for the first half; the second keeps its
    random ones), or a checkpoint of a MultiTaskModel with this encoder. Raises as load_encoder_weights and
    fetch_pretrained do.
    """
    if config.weights is None:
        path, state = (
            Path(VGG),
            fetch_pretrained(VGG, partial(timm.create_model, VGG, num_classes=0)).state_dict(),
        )
    else:
        path = Path(config.weights)
        state = read_weights(path)
    if any(key.startswith(OWN_PREFIX) for key in state):
        _load_own(path, config.name, state, network)
        return
    half = {key: value for key, value in network.state_dict().items() if key.startswith("down.")}
    half_state = from_vgg(state)
    if half[STEM].shape[1] != 3 and _inputs(half_state, STEM) == 3:
        half_state[STEM] = adapt_input_conv(half[STEM].shape[1], half_state[STEM])
    check_weights(path, f"{config.name}, whose first half is {VGG}'s of width 64", half_state, half)
    network.load_state_dict(half_state, strict=False)  # checked; the second half has no pretrained weights


def _load_own(path: Path, name: str, state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Load the encoder's part of a MultiTaskModel's weights, less the attention that belongs to its heads."""
    own = {key.removeprefix(OWN_PREFIX): value for key, value in state.items() if key.startswith(OWN_PREFIX)}
    reference = network.state_dict()
    if not any(key.startswith(ATTENTION_PREFIX) for key in reference):
        own = {key: value for key, value in own.items() if not key.startswith(ATTENTION_PREFIX)}
    check_weights(path, name, own, reference)
    network.load_state_dict(own, strict=False)  # checked; counters of batches may be missing


def read_weights(path: Path, place: str = "model.encoder.weights") -> dict[str, Tensor]:
    """The tensors of a file by name; no code in it runs. `place` is the recipe's key that names it, for messages.

    Raises ConfigError where the file is missing, of another format or holds more than weights, ArtifactError where it is
    damaged.
    """
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ConfigError(
            f"{place}: {path} is neither a .safetensors nor a .pth file of weights",
            f"convert it with safetensors.torch.save_file, or name a package of weights as {PACKAGE_PREFIX}NAME",
        )
    if not path.is_file():
        raise ConfigError(
            f"{place}: there is no file {path}",
            "give the path of a .safetensors or .pth file of weights",
        )
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path, place)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged: {error}", "fetch or write the file again") from error


def _read_torch(path: Path, place: str) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote; only plain weights are read, so no code of the file runs."""
    try:
        state = read_state(path)
    except CodeError as error:
        raise ConfigError(
            f"{place}: {path} holds more than weights: {error}",
            "such a file could run code; save model.state_dict() alone, best with safetensors.torch.save_file",
        ) from error
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", "fetch or write the file again") from error
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(
            f"{place}: {path} is no dictionary of tensors by name",
            "save the state_dict() of the network",
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _without_classifier(state: dict[str, Tensor], reference: nn.Module) -> dict[str, Tensor]:
    """The weights less those of timm's classifier layers, which no encoder has."""
    classifier = reference.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in names}


def check_weights(
    path: Path,
    name: str,
    state: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    mend: str = "name the model that the file was made for in model.encoder.name, with the same options",
) -> None:
    """Raise ArtifactError unless both have the same names and shapes; counters of batches may be missing."""
    # Counters of batches: absent from older files, and of no effect on the function.
    needed = {key for key in reference if not key.endswith("num_batches_tracked")}
    shapes = [
        f"{key} is {tuple(state[key].shape)}, needs {tuple(reference[key].shape)}"
        for key in reference
        if key in state and state[key].shape != reference[key].shape
    ]
    faults = [
        f"{what}: {', '.join(names[:LISTED])}"
        + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
        for what, names in (
            ("missing", sorted(needed - set(state))),
            ("unknown", sorted(set(state) - set(reference))),
            ("of another shape", shapes),
        )
        if names
    ]
    if faults:
        raise ArtifactError(
            f"{path} does not hold the weights of {name}; {'; '.join(faults)}",
            mend,
        )
