"""Property: on any network of the supported operators, under any mask, surgery keeps the function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compactmtl.surgery import compact, thin
from tests.support.random_networks import Network, mask

# float64: merged carriers and folded constants are sums taken in another order, nothing more.
TOLERANCE = 1e-9


def _check(seed: int, depth: int, align: int, gather: bool, free: bool) -> float:
    """With `free`, moving numbers costs nothing: layers take spans, in another order, wherever that saves a channel."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("MACS_PER_MOVE", "MACS_PER_COPY", "MACS_PER_CALL") if free else ():
            patched.setattr(thin, name, 0.0)
        return _reduction(seed, depth, align, gather)


def _reduction(seed: int, depth: int, align: int, gather: bool) -> float:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    torch.manual_seed(seed)
    model = Network(draw, depth).double().eval()
    mask(model, draw)
    result = compact(
        model,
        (torch.randn(2, 3, 16, 16, dtype=torch.float64),),
        align=align,
        tolerance=TOLERANCE,
        gather=gather,
    )
    fresh = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        try:
            expected = model(fresh)
        except RuntimeError:  # an odd size that the network itself cannot take
            fresh = torch.randn(3, 3, 16, 16, dtype=torch.float64)
            expected = model(fresh)
        output = result.model(fresh)
    for key, value in expected.items():
        scale = float(value.abs().max()) or 1.0
        assert float((value - output[key]).abs().max()) / scale <= TOLERANCE, key
    assert not [reason for reason in result.report.not_pruned.values() if "rolled back" in reason]
    return result.report.mac_reduction


@settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 3),
    align=st.sampled_from([1, 4]),
    gather=st.booleans(),
    free=st.booleans(),
)
@example(seed=50, depth=1, align=8, gather=False, free=False)  # fused attention of a single head
def test_compact_equals_masked(seed: int, depth: int, align: int, gather: bool, free: bool) -> None:
    _check(seed, depth, align, gather, free)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000_000),
    depth=st.integers(2, 6),
    align=st.sampled_from([1, 4, 8]),
    gather=st.booleans(),
    free=st.booleans(),
)
@example(seed=0, depth=4, align=1, gather=False, free=True)
def test_compact_equals_masked_on_deeper_networks(
    seed: int, depth: int, align: int, gather: bool, free: bool
) -> None:
    _check(seed, depth, align, gather, free)
