"""How float32 products are computed: in full precision, or on NVIDIA GPUs from Ampere on in TF32, whose fraction has 10 bits.

torch lets cuDNN convolve in TF32 by default, which is off by up to 1e-3 of the output's range: more than any parity allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# torch has two sets of switches, the older `allow_tf32` and the newer `fp32_precision`, and raises where one is read that
# only the other has set. So both are set here, the older first, whose setters change the newer.
_TORCH: Any = torch.backends
_NEWER = (_TORCH.cuda.matmul, _TORCH.cudnn.conv, _TORCH.cudnn.rnn)


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Products of float32 in full precision for a while or, with `tf32`, in TF32 where the GPU has it."""
    cuda, cudnn, cpu = _TORCH.cuda.matmul, _TORCH.cudnn, _TORCH.mkldnn.matmul
    newer = [one.fp32_precision for one in _NEWER]
    on_cpu = cpu.fp32_precision
    legacy: tuple[str, bool] | None = None
    with suppress(RuntimeError):  # the caller mixed the two: then the newer decides
        legacy = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    if tf32:
        cuda.allow_tf32 = cudnn.allow_tf32 = True
    else:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
    for one in _NEWER:
        one.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            cudnn.allow_tf32 = legacy[1]
        for one, precision in zip(_NEWER, newer, strict=True):
            one.fp32_precision = precision
        cpu.fp32_precision = on_cpu
