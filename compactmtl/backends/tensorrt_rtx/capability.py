"""What TensorRT for RTX does not compile for a compute capability, known before its compiler is asked.

Learned from the builder of version 1.7.1. A test asks the real one for every operator, type and capability here, so that
a version which can do more, or less, fails it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from compactmtl.backends.tensorrt.network import DECONVOLUTION, EINSUM, PRODUCT, NetworkLayer
from compactmtl.errors import ConfigError

FEW = 3  # nodes that a message names


@dataclass(frozen=True)
class Limit:
    """A type that capabilities below `since` lack (None: all do), in layers of some kinds (none: in all)."""

    kind: str  # numpy's name of the type
    what: str
    since: float | None
    layers: frozenset[str] = frozenset()
    mend: str = "choose another precision"

    def holds(self, layer: NetworkLayer) -> bool:
        """Whether the layer is of this type. A matrix product has the type that it reads, dequantized or not."""
        if self.layers:
            return layer.kind in self.layers and layer.reads == self.kind
        return self.kind in layer.types

    def lacks(self, capability: str) -> bool:
        """Whether a capability does not have it."""
        return self.since is None or float(capability) < self.since


LIMITS = (
    Limit("bfloat16", "bfloat16", 8.0, mend="choose fp16"),
    Limit("float8", "8-bit floating point", 8.9, mend="choose int8"),
    Limit(
        "float32",
        "float32 matrix products, quantized ones included",
        8.0,
        frozenset({PRODUCT, EINSUM}),
        "choose fp16, and keep no matrix product in float32",
    ),
    Limit(
        "bfloat16",
        "transposed convolutions in bfloat16",
        None,
        frozenset({DECONVOLUTION}),
        "export again: `tensorrt-rtx` targets keep them in float32",
    ),
)


def check_capabilities(
    layers: Sequence[NetworkLayer], capabilities: Iterable[str], model: str, section: str
) -> None:
    """Raise ConfigError where the network has what one of the capabilities lacks, naming both, a node, and the mend."""
    found = list(lacking(layers, capabilities))
    if not found:
        return
    limit, without, nodes = found[0]
    more = f" and {len(nodes) - FEW} more" if len(nodes) > FEW else ""
    if limit.since is None:
        raise ConfigError(
            f"TensorRT-RTX has no {limit.what}: {model} has them at {', '.join(nodes[:FEW])}{more}",
            limit.mend,
        )
    raise ConfigError(
        f"compute capability {', '.join(without)} has no {limit.what} in TensorRT-RTX:"
        f" {model} has them at {', '.join(nodes[:FEW])}{more}",
        f"leave {', '.join(without)} out of {section}.compute, or {limit.mend}",
    )


def lacking(
    layers: Sequence[NetworkLayer], capabilities: Iterable[str]
) -> Iterator[tuple[Limit, list[str], list[str]]]:
    """Each limit that the network meets, the capabilities that lack it, and the nodes that need it."""
    asked = tuple(capabilities)
    for limit in LIMITS:
        without = [one for one in asked if limit.lacks(one)]
        nodes = list(dict.fromkeys(layer.node for layer in layers if limit.holds(layer))) if without else []
        if nodes:
            yield limit, without, nodes
