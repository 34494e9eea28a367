"""Run any number of samples through a model of fixed batch size."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from compactmtl.backends.base import Arrays, Runner
from compactmtl.backends.chunks import in_chunks


def fixed_batch(runner: Runner) -> int | None:
    """The batch size that the model's inputs are fixed to, or None where it is free."""
    sizes = {tensor.shape[0] for tensor in runner.inputs if tensor.shape}
    sizes.discard(None)
    return next(iter(sizes)) if len(sizes) == 1 else None


def run_batched(runner: Runner, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Outputs for inputs with B samples along dimension 0, whatever batch the model is fixed to.

    A model of fixed batch n runs ceil(B / n) times; a last chunk that is short is filled up by repeating its
    last sample, and the answers to the filling are cut off again. All outputs have the batch in dimension 0.
    """
    batch = fixed_batch(runner)
    count = len(next(iter(inputs.values())))
    if batch is None or batch == count:
        return dict(runner.run(inputs))
    return in_chunks(runner.run, dict(inputs), batch)
