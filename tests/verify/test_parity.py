"""Parity catches each way in which an artifact can differ from its model, each by its own error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from compactmtl.config.target import ParityConfig, Target
from compactmtl.errors import GATE, ArtifactError
from compactmtl.export import export_onnx
from compactmtl.verify import check_parity
from compactmtl.verify.parity import (
    DtypeMismatchError,
    NameMismatchError,
    NonFiniteError,
    ParityError,
    ShapeMismatchError,
    as_parity,
)
from compactmtl.verify.tally import Tally
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx


@pytest.fixture
def module() -> TwoHeads:
    return TwoHeads()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(4, WIDTH)


def test_sound_file_passes_over_several_cases(tmp_path: Path, module: TwoHeads, image: torch.Tensor) -> None:
    path = write_onnx(tmp_path / "m.onnx", module)
    found = check_parity(module, path, [image, (image[:1],), image[:3]])
    assert found.passed
    assert found.samples == 8
    assert [output.name for output in found.outputs] == ["zeta", "alpha"]
    assert all(output.cosine == pytest.approx(1, abs=1e-6) for output in found.outputs)
    assert all(output.shape == (4, 3) for output in found.outputs)


def test_the_model_is_left_in_its_modes(tmp_path: Path, module: TwoHeads, image: torch.Tensor) -> None:
    module.train()
    module.zeta.eval()
    assert check_parity(module, write_onnx(tmp_path / "m.onnx", module), image).passed  # dropout was off
    assert module.training
    assert module.dropout.training
    assert not module.zeta.training


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ({"names": ("zeta", "beta")}, NameMismatchError, r"\['zeta', 'beta'\]"),
        (
            {"names": ("alpha", "zeta"), "order": ("alpha", "zeta")},
            NameMismatchError,
            r"\['alpha', 'zeta'\]",
        ),
        ({"names": ("zeta",), "order": ("zeta",)}, NameMismatchError, r"\['zeta'\]"),
        ({"keep": 2}, ShapeMismatchError, r"'zeta' has shape \(4, 2\)"),
        ({"dtype": TensorProto.FLOAT16}, DtypeMismatchError, "'zeta' is float16"),
        ({"offset": float("nan")}, NonFiniteError, r"m\.onnx: output 'zeta' has 12 of 12 values"),
        ({"offset": float("inf")}, NonFiniteError, "NaN or infinite"),
    ],
)
def test_structural_faults_raise_their_own_error(
    tmp_path: Path,
    module: TwoHeads,
    image: torch.Tensor,
    fault: dict[str, object],
    error: type[ParityError],
    message: str,
) -> None:
    path = write_onnx(tmp_path / "m.onnx", module, **fault)  # type: ignore[arg-type]
    with pytest.raises(error, match=message) as caught:
        check_parity(module, path, image)
    assert caught.value.exit_code == GATE


def test_model_with_nan_weights_is_told_from_a_bad_file(
    tmp_path: Path, module: TwoHeads, image: torch.Tensor
) -> None:
    path = write_onnx(tmp_path / "m.onnx", module)
    with torch.no_grad():
        module.alpha.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^the torch model: output 'alpha' has 4 of 12"):
        check_parity(module, path, image)


def test_swapped_outputs_of_one_shape_do_not_pass(
    tmp_path: Path, module: TwoHeads, image: torch.Tensor
) -> None:
    path = write_onnx(tmp_path / "m.onnx", module, order=("alpha", "zeta"))
    found = check_parity(module, path, image)
    assert not found.passed
    assert not any(output.passed for output in found.outputs)


def test_difference_is_measured_against_the_range(
    tmp_path: Path, module: TwoHeads, image: torch.Tensor
) -> None:
    path = write_onnx(tmp_path / "m.onnx", module, offset=0.01)
    reference = module.eval()(image)["zeta"].detach()
    span = float(reference.max() - reference.min())
    found = check_parity(module, path, image).outputs[0]
    assert not found.passed
    assert found.max_abs == pytest.approx(0.01, rel=1e-3)  # float32 rounding of values near 1
    assert found.max_relative == pytest.approx(0.01 / span, rel=1e-3)
    assert check_parity(module, path, image, tolerance=1.01 * 0.01 / span).outputs[0].passed


def test_tolerance_of_a_single_task_is_its_own(tmp_path: Path, module: TwoHeads, image: torch.Tensor) -> None:
    path = write_onnx(tmp_path / "m.onnx", module, offset=0.01)
    target = Target(backend="onnxruntime", parity=ParityConfig(tasks={"zeta": 0.5}))
    zeta, alpha = check_parity(module, path, image, target=target).outputs
    assert (zeta.tolerance, zeta.passed) == (0.5, True)
    assert (alpha.tolerance, alpha.passed) == (1e-4, False)


def test_another_number_of_inputs_is_an_artifact_error(
    tmp_path: Path, module: TwoHeads, image: torch.Tensor
) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    path = write_onnx(tmp_path / "m.onnx", module)
    with pytest.raises(ArtifactError, match="takes 1 inputs"):
        check_parity(Two(), path, (image, image))


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20),
    cut=st.integers(1, 19),
    noise=st.floats(0, 1),
)
def test_tally_does_not_depend_on_how_samples_are_cut_into_cases(
    values: list[float], cut: int, noise: float
) -> None:
    a = np.asarray(values, dtype=np.float32)
    b = (a + noise * np.sin(np.arange(len(a)))).astype(np.float32)
    whole, parts = Tally(a.shape), Tally(a.shape)
    whole.add(a, b)
    for part in (slice(None, cut), slice(cut, None)):
        if a[part].size:
            parts.add(a[part], b[part])
    one, other = as_parity("x", whole.result(), 1e-4), as_parity("x", parts.result(), 1e-4)
    assert one.max_relative == other.max_relative
    assert one.cosine == pytest.approx(other.cosine, abs=1e-12)  # float64 sums in another order


def test_constant_and_zero_references_have_a_scale() -> None:
    constant = Tally((2,))
    constant.add(np.full(2, 4.0, np.float32), np.full(2, 5.0, np.float32))
    assert as_parity("x", constant.result(), 1e-4).max_relative == 0.25  # of the magnitude 4
    zero = Tally((1,))
    zero.add(np.zeros(1, np.float32), np.zeros(1, np.float32))
    result = as_parity("x", zero.result(), 1e-4)
    assert (result.max_relative, result.cosine, result.passed) == (0.0, 1.0, True)


def test_a_range_finer_than_float32_resolves_is_measured_against_the_magnitude() -> None:
    nearly_constant = Tally((2,))
    reference = np.array([3.6, 3.601], np.float32)
    nearly_constant.add(reference, np.nextafter(reference, np.float32(4)))  # one rounding step each
    assert as_parity("x", nearly_constant.result(), 1e-4).passed
    off = Tally((2,))
    off.add(reference, reference + np.float32(1e-4))  # hundreds of steps: a real difference
    assert not as_parity("x", off.result(), 1e-4).passed


@pytest.mark.parametrize(
    ("samples", "passed"),
    [
        ([[1.0, 5.0]], True),  # one sample can't tell
        ([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]], False),
        ([[1.0, 5.0], [1.0 + 4e-6, 5.0]], False),  # a millionth of the range: nothing but rounding
        ([[1.0, 5.0], [1.1, 5.0]], True),
    ],
)
def test_outputs_that_do_not_depend_on_the_input_prove_nothing(
    samples: list[list[float]], passed: bool
) -> None:
    tally = Tally((1, 2))
    for sample in samples:
        array = np.array([sample], np.float32)
        tally.add(array, array)
    found = as_parity("x", tally.result(), 1e-4)
    assert (found.max_relative, found.passed, found.blind) == (0.0, passed, not passed)
    assert as_parity("x", tally.result(), math.inf).passed  # not a gate


def test_a_network_whose_encoder_died_does_not_pass(tmp_path: Path, image: torch.Tensor) -> None:
    module = TwoHeads().eval()
    with torch.no_grad():
        module.zeta.weight.zero_()
    found = check_parity(module, write_onnx(tmp_path / "m.onnx", module), image)
    assert {output.name: output.passed for output in found.outputs} == {"zeta": False, "alpha": True}
    assert not found.passed


def test_no_sample_is_no_parity(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", TwoHeads())
    with pytest.raises(ArtifactError, match="at least one sample"):
        check_parity(TwoHeads(), path, torch.zeros(0, WIDTH))


class Decisions(nn.Module):
    """Outputs of other types than floating numbers, and one with nothing in it."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"above": x > 0, "which": x.argmax(1), "none": x[:, :0], "value": x * 2}


@pytest.mark.slow
def test_truth_values_whole_numbers_and_nothing_have_a_verdict_over_several_samples(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    path = export_onnx(Decisions(), x, tmp_path / "decisions.onnx", dynamic_batch=True)
    found = check_parity(Decisions(), path, [x, torch.randn(6, 3)])
    assert found.passed and found.samples == 10
    assert {output.name: output.max_relative for output in found.outputs} == pytest.approx(
        dict.fromkeys(("above", "which", "none", "value"), 0.0)
    )


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint8])
def test_of_classes_and_truth_values_the_share_that_differs_counts(dtype: type) -> None:
    tally = Tally((2, 4))
    for _ in range(2):
        reference: NDArray[Any] = np.array([[0, 1, 0, 1], [1, 1, 0, 0]]).astype(dtype)
        artifact = reference.copy()
        artifact[0, 0] = 1
        tally.add(reference, artifact)
    found = as_parity("task", tally.result(), 0.1)
    assert found.max_relative == 2 / 16 and not found.passed
    assert as_parity("task", tally.result(), 0.2).passed


def test_complex_numbers_differ_in_either_part() -> None:
    tally = Tally((2, 2))
    reference = np.asarray([[1 + 1j, 2], [3, 4j]], dtype=np.complex128)
    tally.add(reference, reference + 0.5j)
    assert not as_parity("task", tally.result(), 1e-3).passed
