"""Decoding of instances: torch and numpy agree on any output, and known outputs give the instances they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compactmtl.tasks.instance_decoding import Instances, decode_instances, upsample
from compactmtl.tasks.instance_decoding_numpy import (
    OFFSET_UNIT,
    STRIDE,
    DecodingOptions,
    decode_instances_numpy,
)
from compactmtl.tasks.instance_decoding_numpy import upsample as upsample_numpy

CLASSES = 3
OPTIONS = DecodingOptions()


def empty(rows: int = 8, columns: int = 10) -> Tensor:
    """An output that says nothing but background."""
    output = torch.zeros(CLASSES + 4, rows, columns)
    output[0], output[CLASSES + 1] = 6.0, -8.0
    return output


def put(output: Tensor, label: int, top: int, left: int, height: int, width: int, logit: float = 3.0) -> None:
    """An instance that fills these cells, with its center in their middle."""
    here = (slice(top, top + height), slice(left, left + width))
    output[0][here], output[label + 1][here] = -6.0, 6.0
    row, column = top + height // 2, left + width // 2
    output[CLASSES + 1, row, column] = logit
    rows = torch.arange(top, top + height)[:, None].expand(height, width)
    columns = torch.arange(left, left + width).expand(height, width)
    output[CLASSES + 2][here] = (row - rows) * STRIDE / OFFSET_UNIT
    output[CLASSES + 3][here] = (column - columns) * STRIDE / OFFSET_UNIT


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    window=st.sampled_from([1, 3, 5]),
    limit=st.integers(1, 12),
    shift=st.floats(-6, 3),
)
def test_torch_and_numpy_give_the_same_instances(
    seed: int, rows: int, columns: int, window: int, limit: int, shift: float
) -> None:
    output = 2 * torch.randn(CLASSES + 4, rows, columns, generator=torch.Generator().manual_seed(seed))
    output[CLASSES + 1] += shift
    ours = decode_instances(output, DecodingOptions(threshold=0.2, window=window, limit=limit))
    numbers, classes, scores = decode_instances_numpy(
        output.numpy(), threshold=0.2, window=window, limit=limit
    )
    np.testing.assert_array_equal(ours.numbers.numpy(), numbers)
    np.testing.assert_array_equal(ours.classes.numpy(), classes)
    # float32 exponentials of two libraries
    np.testing.assert_allclose(ours.scores.numpy(), scores, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), factor=st.integers(1, 5), seed=st.integers(0, 1000))
def test_upsampling_is_torchs_bilinear(rows: int, columns: int, factor: int, seed: int) -> None:
    value = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = F.interpolate(value[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsample(value, factor), expected, rtol=0, atol=1e-5)  # float32 weights
    np.testing.assert_array_equal(upsample(value, factor).numpy(), upsample_numpy(value.numpy(), factor))


def test_instances_come_back_as_they_were_put_in() -> None:
    output = empty()
    put(output, 0, 0, 0, 3, 3, logit=3.0)
    put(output, 2, 4, 5, 4, 5, logit=4.0)
    found = decode_instances(output, OPTIONS)
    assert found.classes.tolist() == [2, 0]  # the surer one first
    assert found.scores[0] > found.scores[1] > 0.8
    cells = found.numbers.view(8, STRIDE, 10, STRIDE).movedim(1, 2)
    assert (cells[5:7, 6:9] == 1).all() and (cells[0:2, 0:2] == 2).all()
    assert (found.numbers > 0).sum() == pytest.approx(
        (9 + 20) * STRIDE**2, rel=0.15
    )  # edges lie between cells


def test_neighbors_of_one_class_are_told_apart_by_their_centers() -> None:
    output = empty()
    put(output, 1, 2, 0, 4, 5)
    put(output, 1, 2, 5, 4, 5)
    numbers = decode_instances(output, OPTIONS).numbers
    assert set(numbers.flatten().tolist()) == {0, 1, 2}
    assert numbers[14, 8] != numbers[14, 32] and (numbers[10:22, 2:17] == numbers[14, 8]).all()


def test_an_instance_has_the_class_of_most_of_its_pixels() -> None:
    output = empty()
    put(output, 1, 1, 1, 5, 5)
    output[2, 1:6, 1], output[3, 1:6, 1] = -6.0, 6.0  # one column of five looks like class 2
    found = decode_instances(output, OPTIONS)
    assert found.classes.tolist() == [1]
    assert found.scores[0] < 0.85 * torch.tensor(3.0).sigmoid()  # and the doubt shows


@pytest.mark.parametrize("kind", ["no center", "no thing", "a center without a pixel"])
def test_there_may_be_nothing(kind: str) -> None:
    output = empty()
    if kind == "no center":
        output[1, 2:4, 2:4] = 20.0
    elif kind == "no thing":
        output[CLASSES + 1, 3, 3] = 5.0
    else:
        put(output, 0, 0, 0, 2, 2)
        output[CLASSES + 1, 7, 9] = 5.0  # far from any thing
    found = decode_instances(output, OPTIONS)
    numbers, classes, scores = decode_instances_numpy(output.numpy())
    assert len(found.classes) == len(found.scores) == len(classes) == len(scores) == (kind[0] == "a")
    assert found.numbers.shape == (8 * STRIDE, 10 * STRIDE) and (found.numbers.numpy() == numbers).all()


def test_limit_keeps_the_surest_and_threshold_drops_the_unsure() -> None:
    output = empty()
    for index, logit in enumerate((1.0, 3.0, -1.0)):
        put(output, index, 2, 3 * index, 3, 3, logit=logit)
    for options, wanted in (({"limit": 1}, 1), ({"threshold": 0.5}, 2), ({"threshold": 0.1}, 3)):
        assert len(decode_instances(output, DecodingOptions.model_validate(options)).classes) == wanted
    surest = decode_instances(output, DecodingOptions(limit=1))
    assert (
        surest.numbers[8:20, :36] == 1
    ).float().mean() > 0.9  # the other things fall to what center is left


def test_as_a_target_numbers_and_classes_go_together() -> None:
    numbers = torch.tensor([[0, 1], [2, 2]])
    found = Instances(numbers, torch.tensor([2, 0]), torch.ones(2))
    assert found.target().tolist() == [[[0, 1], [2, 2]], [[0, 2], [0, 0]]]
