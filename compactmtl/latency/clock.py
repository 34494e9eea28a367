"""Milliseconds of a network in training, as it would be exported now, beside the dense one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import Progress
from compactmtl.config.sparsity import LatencyBudget
from compactmtl.config.target import Target
from compactmtl.graph.space import Flags
from compactmtl.latency.calibrate import cut_to
from compactmtl.latency.measure import BUSY, conditions_of
from compactmtl.latency.observe import WARMUP, once_of, opened, widths_of
from compactmtl.latency.store import Store
from compactmtl.sparsity import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.verify.latency import measure_latency, undisturbed

SECONDS = 4.0  # of timing both networks, about
ROUNDS = (20, 400)  # so many that a second of other work moves neither of the two
SETTLE = 3
TRIES = 3  # timings of one network on a busy machine
DENSE, SMALL = "dense", "small"


class PairedClock:
    """Times what is left of a network in training beside the dense network.

    A speedup or a share of the latency is of the dense network in the same rounds, so the ratio counts, as a share of what
    the table says of the whole; milliseconds count as they are. What was measured of networks of the same widths is read
    from the cache, so that a run that is resumed or repeated chooses the same.
    """

    def __init__(
        self,
        table: LatencyTable,
        budget: LatencyBudget,
        dense: nn.Module,
        inputs: tuple[Tensor, ...],
        target: Target,
        *,
        store: Store | None = None,
        progress: Progress = lambda line: None,
    ) -> None:
        """`dense` is the plain network before training, on the CPU, `inputs` of the target's batch size."""
        self._table, self._budget, self._target = table, budget, target
        self._dense, self._inputs = dense, inputs
        self._store = store or Store(conditions_of(target, len(inputs[0])))
        self._progress = progress
        self._full = {name: layer.full for name, layer in table.layers.items()}

    def __call__(self, keep: Sequence[Flags], groups: ChannelGroups, model: nn.Module) -> float | None:
        """Milliseconds of `model` with only the groups in `keep`; None where the machine is too busy to tell."""
        small = cut_to(groups, keep, model, self._inputs)
        key = self._key(small)
        if (known := self._store.milliseconds(key)) is not None:
            return known
        for _ in range(TRIES):
            whole, own, spread = self._timed(small)
            if spread <= BUSY:
                break
        else:
            self._progress("the machine is too busy to measure what is left; the table decides")
            return None
        absolute = self._budget.ms is not None
        ms = own if absolute else own / whole * (self._table.whole_ms or whole)
        self._progress(f"what is left takes {own:.3g} ms, the dense network {whole:.3g} ms beside it")
        return self._store.keep_milliseconds(key, ms)

    def _timed(self, small: nn.Module) -> tuple[float, float, float]:
        """Milliseconds of the dense and of the small network, and how much they vary."""
        with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
            paths = {name: Path(folder) / name / MODEL_FILE for name in (DENSE, SMALL)}
            for path in paths.values():
                path.parent.mkdir()
            with (
                opened(self._dense, self._inputs, self._target, paths[DENSE]) as dense,
                opened(small, self._inputs, self._target, paths[SMALL]) as runner,
            ):
                arrays = {
                    name: value.numpy() for name, value in zip(dense.input_names, self._inputs, strict=True)
                }
                once = sum(once_of(one, arrays) for one in (dense, runner)) * (1 + SETTLE)
                stats = measure_latency(
                    {DENSE: dense, SMALL: runner},
                    dict(zip(dense.input_names, self._inputs, strict=True)),
                    warmup=WARMUP,
                    repeats=int(np.clip(SECONDS / once, *ROUNDS)),
                    settle=SETTLE,
                ).stats
        (whole, one), (own, other) = undisturbed(stats[DENSE], stats[SMALL])
        return whole, own, max(one, other)

    def _key(self, small: nn.Module) -> str:
        facts = [
            "paired",
            self._budget.ms is not None,
            self._table.model_dump_json(),
            sorted(widths_of(small, self._full).items()),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
