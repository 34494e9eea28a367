"""Which entries of parameters go with the channels of a model's outputs, so that a cut of one can be followed in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Ids

Entry = tuple[str, int, int]  # a parameter by its name, a dimension, an index there


@dataclass(frozen=True)
class Sources:
    """For each channel of an output an entry of a parameter that goes when the channel goes; None where there is none."""

    entries: tuple[Entry | None, ...]

    def left(self, kept: Mapping[tuple[str, int], Ids]) -> tuple[list[int], Sources]:
        """The channels that are left where of dimensions of parameters only the indices `kept` are, and their sources."""
        left, entries = [], list[Entry | None]()
        for channel, entry in enumerate(self.entries):
            if entry is not None and (indices := kept.get(entry[:2])) is not None:
                place = np.flatnonzero(indices == entry[2])
                if len(place) == 0:
                    continue
                entry = (*entry[:2], int(place[0]))
            left.append(channel)
            entries.append(entry)
        return left, Sources(tuple(entries))


def sources_of_outputs(model: nn.Module, example_inputs: Sequence[Tensor], prefix: str = "") -> list[Sources]:
    """Where each of the model's output tensors (B, C, ...), in their order, has its channels from.

    Names begin with `prefix`. Raises SurgeryError where the model cannot be traced.
    """
    graph = ChannelGraph.trace(model, example_inputs)
    parameters = {name for name, _ in model.named_parameters()}
    entries: dict[int, Entry] = {}
    for binding in graph.bindings:
        if binding.name in parameters and binding.groups == 1:
            for index, label in enumerate(graph.labels[binding.ids]):
                entries.setdefault(int(label), (prefix + binding.name, binding.dim, index))
    found = []
    for node in graph.outputs:
        axis = graph.axis(node)
        if axis is None or axis.dims != (1,):
            found.append(Sources((None,) * graph.shape(node)[1]))
            continue
        found.append(Sources(tuple(entries.get(int(label)) for label in graph.labels[axis.ids])))
    return found
