"""Products of float32: both sets of torch's switches agree within, and are as before afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from compactmtl.graph.float32 import float32_products


def switches() -> list[object]:
    backends = torch.backends
    return [
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        *(
            one.fp32_precision
            for one in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)  # type: ignore[attr-defined]
        ),
    ]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_switches_agree_and_are_put_back(precision: str) -> None:
    former = switches()
    torch.set_float32_matmul_precision(precision)
    before = switches()
    try:
        with float32_products():
            assert switches()[:6] == [False, False, "highest", "ieee", "ieee", "ieee"]
            with float32_products(tf32=True):
                assert switches()[:2] == [True, True]
                assert switches()[3:6] == ["tf32", "tf32", "tf32"]
            assert switches()[:6] == [False, False, "highest", "ieee", "ieee", "ieee"]
        assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = former[-1]  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = former[3]


def test_they_are_put_back_after_an_error() -> None:
    before = switches()
    with pytest.raises(ValueError, match="x"), float32_products():
        raise ValueError("x")
    assert switches() == before


MIXED = """
import torch
from compactmtl.graph.float32 import float32_products
torch.backends.cudnn.conv.fp32_precision = "ieee"  # the older switch still says TF32: reading it raises
with float32_products():
    print(torch.backends.cudnn.allow_tf32, torch.backends.cudnn.rnn.fp32_precision)
print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision)
"""


@pytest.mark.slow
def test_a_caller_that_mixed_them_gets_the_newer_back() -> None:
    found = subprocess.run([sys.executable, "-c", MIXED], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "ieee", "ieee", "tf32"]
