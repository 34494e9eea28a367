"""Run any number of samples through a model of fixed batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.base import Arrays, Runner


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
    chunks: list[dict[str, NDArray[Any]]] = []
    for start in range(0, count, batch):
        chunk = {name: array[start : start + batch] for name, array in inputs.items()}
        short = batch - min(batch, count - start)
        if short:
            chunk = {name: _fill(array, short) for name, array in chunk.items()}
        outputs = runner.run(chunk)
        chunks.append({name: array[: batch - short] for name, array in outputs.items()})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in runner.output_names}


def _fill(array: NDArray[Any], count: int) -> NDArray[Any]:
    return np.concatenate([array, np.repeat(array[-1:], count, axis=0)])
