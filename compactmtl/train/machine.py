"""The device and the settings of torch that a recipe asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compactmtl.config import Recipe
from compactmtl.graph.float32 import float32_products

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_FIXED = ":4096:8"  # cuBLAS then sums in one order: its documentation, "Results Reproducibility"


def pinned(recipe: Recipe) -> bool:
    """Whether batches go to a GPU, so that they should lie in page-locked memory."""
    return recipe.train.device.partition(":")[0] == "cuda" and torch.cuda.is_available()


@contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
    """The recipe's thread count, bit-equal kernels, precision of float32 products and buffers of torch.compile, undone at the end.

    cuBLAS reads its variable when it is first used and the variable stays; a value that the user set is left.
    """
    config = recipe.train
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic)
    if config.threads:
        torch.set_num_threads(config.threads)
    cudnn.benchmark, cudnn.deterministic = not config.deterministic, config.deterministic
    try:
        with float32_products(tf32=config.tf32), _deterministic(recipe), _buffers_kept(recipe):
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _buffers_kept(recipe: Recipe) -> Iterator[None]:
    """What a compiled forward pass keeps may serve several gradients, also where its first served one.

    Torch asks for this setting in the backward pass too, and a second training of a process takes the first one's graphs.
    """
    if recipe.train.compile is False:
        yield
        return
    import torch._functorch.config as functorch_config

    functorch: Any = functorch_config
    with functorch.patch(donated_buffer=False):
        yield


@contextmanager
def _deterministic(recipe: Recipe) -> Iterator[None]:
    """Deterministic algorithms alone where the recipe asks for them; a CPU's are so without the switch, and faster."""
    if not recipe.train.deterministic or recipe.train.device.partition(":")[0] == "cpu":
        yield
        return
    os.environ.setdefault(CUBLAS, CUBLAS_FIXED)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    # memory that is written before it is read needs no filling, which would be a pass over all of it
    memory.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
