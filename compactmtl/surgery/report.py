"""What surgery did: cost before and after, every layer's channels, the proof, and what was left alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags
from compactmtl.graph.stages import Tracing
from compactmtl.surgery.prove import Proof
from compactmtl.surgery.thin import Thinned
from compactmtl.surgery.timed import Timing


@dataclass(frozen=True)
class LayerChange:
    """One convolution or linear layer: [outputs, inputs] and MACs before and after."""

    name: str
    type: str
    before: tuple[int, int]
    after: tuple[int, int]
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class SurgeryReport:
    """MACs are of the whole model at the example inputs; `not_pruned` gives layer -> reason for those that keep dead channels.

    Channel counts were kept at multiples of `align`. `contracted` names the blocks of branches and the layers that
    computed their weight at every call, which became plain layers; `unreached` the modules, and single parameters, that
    the traced forward does not read. `joined` gives for each layer that several in a row became, itself among them, their
    names in order; `identities` names the layers and norms that left because they hand on their input as it is.
    `timing` says what was left undone for a latency table, None without one.
    `tracing` says how the model was traced, and which modules were taken whole for it. `spans` and `gathers` name the layers that read or write a part of the channels around
    them, in one piece and by index.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerChange, ...]
    proof: Proof
    not_pruned: dict[str, str]
    seconds: float
    contracted: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    align: int = 1
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    timing: Timing | None = None
    tracing: Tracing = field(default_factory=Tracing)
    spans: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()

    @property
    def mac_reduction(self) -> float:
        """Share of the whole model's MACs that is gone."""
        return 1.0 - self.macs_after / self.macs_before if self.macs_before else 0.0

    @property
    def kept_whole(self) -> dict[str, str]:
        """Deprecated: `not_pruned`."""
        warnings.warn(
            "SurgeryReport.kept_whole is now SurgeryReport.not_pruned", DeprecationWarning, stacklevel=2
        )
        return self.not_pruned

    def to_json(self) -> dict[str, Any]:
        """surgery.json."""
        return {
            "version": 2,
            "macs": {"before": self.macs_before, "after": self.macs_after},
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
            "mac_reduction": self.mac_reduction,
            "align": self.align,
            "layers": [
                {
                    "name": layer.name,
                    "type": layer.type,
                    "before": list(layer.before),
                    "after": list(layer.after),
                    "macs": {"before": layer.macs_before, "after": layer.macs_after},
                }
                for layer in self.layers
            ],
            "proof": {
                "max_relative_error": self.proof.max_relative_error,
                "passed": self.proof.passed,
                **asdict(self.proof),
            },
            "not_pruned": [{"name": name, "reason": reason} for name, reason in self.not_pruned.items()],
            "contracted": list(self.contracted),
            "unreached": list(self.unreached),
            "joined": [{"into": into, "layers": list(layers)} for into, layers in self.joined.items()],
            "identities": list(self.identities),
            "timing": asdict(self.timing) if self.timing is not None else None,
            "tracing": {
                "stage": self.tracing.stage,
                "failed": [{"stage": stage, "reason": reason} for stage, reason in self.tracing.failed],
                "whole": [{"module": name, "reason": reason} for name, reason in self.tracing.whole.items()],
            },
            "spans": list(self.spans),
            "gathers": list(self.gathers),
            "seconds": self.seconds,
        }


def layer_changes(
    graph: ChannelGraph, alive: Flags, thinned: Mapping[str, Thinned] | None = None
) -> tuple[LayerChange, ...]:
    """Every product layer's channels and MACs with only the `alive` classes kept, and fewer where it is `thinned`."""
    full = graph.layer_macs(np.ones(graph.classes, dtype=bool))
    remaining = graph.layer_macs(alive)
    changes = []
    for position, product in enumerate(graph.products):
        kept = int(alive[graph.labels[product.outputs]].sum())
        if product.inputs is not None:
            inputs = int(alive[graph.labels[product.inputs]].sum())
        else:
            inputs = kept * product.input_size // len(product.outputs)
        thin = (thinned or {}).get(product.weight or "")
        if thin is not None:
            was = kept * inputs
            kept = kept if thin.outputs is None else int(thin.outputs.sum())
            inputs = inputs if thin.inputs is None else int(thin.inputs.sum())
            remaining[position] *= kept * inputs / max(was, 1)
        changes.append(
            LayerChange(
                product.name,
                product.kind,
                (len(product.outputs), product.input_size),
                (kept, inputs),
                round(full[position]),
                round(remaining[position]),
            )
        )
    return tuple(changes)
