"""Models side by side: paired latency, throughput where the batch allows, layers, and what was not run, with why."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.backends import TensorInfo, get_backend
from compactmtl.backends.noise import noise_for
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError
from compactmtl.verify.energy import _measure
from compactmtl.verify.profile import Options, Subject, export_times, profile
from compactmtl.verify.result import PhaseTimes, Profile
from tests.support.onnx_files import TwoHeads, write_onnx

TARGET = Target(backend="onnxruntime")
QUICK = Options(batches=(1, 2), warmup=1, repeats=6, layer_repeats=2, memory=False, energy=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    module, folder = TwoHeads(), tmp_path_factory.mktemp("profile")
    paths = {
        "free": write_onnx(folder / "free.onnx", module),
        "fixed": write_onnx(folder / "fixed.onnx", module, batch=2),
    }
    backend = get_backend("onnxruntime")
    subjects = {name: Subject(path, TARGET, backend.open(path, TARGET)) for name, path in paths.items()}
    return profile(subjects, QUICK)


@pytest.mark.slow
def test_each_model_is_fed_what_it_takes(found: Profile) -> None:
    assert {name: stats.batch for name, stats in found.latency.stats.items()} == {"free": 1, "fixed": 2}
    assert all(len(stats.samples_ms) == 6 for stats in found.latency.stats.values())
    assert found.latency.speedup["free"] == 1
    assert all(
        stats.process_ms is not None and stats.process_ms > 0 for stats in found.latency.stats.values()
    )


def test_throughput_is_measured_where_the_batch_allows_and_else_says_why(found: Profile) -> None:
    assert set(found.subjects["free"].throughput) == {1, 2}
    assert set(found.subjects["fixed"].throughput) == {2}
    assert found.subjects["fixed"].not_run["throughput at batch 1"] == "its batch is fixed to 2"


def test_layers_are_the_runtimes_own(found: Profile) -> None:
    layers = found.subjects["free"].layers
    assert layers is not None
    assert all(layer.milliseconds >= 0 and layer.operator for layer in layers)


def test_what_was_not_run_is_named_with_its_reason(found: Profile) -> None:
    assert "host memory" in found.subjects["free"].not_run["phases"]
    assert found.subjects["free"].not_run["memory"] == "not asked for"
    assert Profile.model_validate_json(found.model_dump_json()) == found


def test_times_are_as_trtexec_writes_them(found: Profile) -> None:
    stats = found.latency.stats["free"]
    times = export_times(stats)
    assert [one["latencyMs"] for one in times] == list(stats.samples_ms)
    assert times[1]["startComputeMs"] == times[0]["endComputeMs"]


def test_times_of_a_gpu_have_their_copies_apart(found: Profile) -> None:
    samples = ((0.5, 2.0, 0.25), (1.0, 3.0, 0.5))
    phases = PhaseTimes(copy_in_ms=0.75, compute_ms=2.5, copy_out_ms=0.375, samples=samples)
    one, two = export_times(found.latency.stats["free"], phases)
    assert (one["h2dMs"], one["computeMs"], one["d2hMs"], one["latencyMs"]) == (0.5, 2.0, 0.25, 2.75)
    assert one["endD2hMs"] == two["startH2dMs"] == 2.75
    assert two["startD2hMs"] == two["endComputeMs"] == 6.75


def test_nothing_to_profile() -> None:
    with pytest.raises(ConfigError, match="nothing to profile"):
        profile({}, QUICK)


def test_noise_takes_the_inputs_shapes_and_types() -> None:
    inputs = [
        TensorInfo("image", (None, 3, 4, 4), "float32"),
        TensorInfo("bytes", (1, 2), "uint8"),
        TensorInfo("mask", (5,), "bool"),
    ]
    found = noise_for(inputs, 2)
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "image": ((2, 3, 4, 4), "float32"),
        "bytes": ((1, 2), "uint8"),
        "mask": ((5,), "bool"),
    }
    assert found["bytes"].max() > 1
    with pytest.raises(ConfigError, match="--shape image=1x3x224x224"):
        noise_for([TensorInfo("image", (1, 3, None, None))], 1)
    with pytest.raises(ConfigError, match="--shape image=1x3x4x4"):
        noise_for(inputs[:1], 1, {"image": (1, 4, 4, 4)})


def test_energy_is_the_counters_rise_a_run() -> None:
    """A counter that rises by 7 mJ a run and a clock that moves by 0.25 s a run."""
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1

    assert _measure(run, lambda: runs * 0.25, lambda: runs * 7) == 7


@pytest.mark.slow  # two processes that load the runtime
def test_memory_grows_with_the_batch(tmp_path: Path) -> None:
    from compactmtl.backends.memory import peak_memory

    path = write_onnx(tmp_path / "m.onnx", TwoHeads())
    small, large = (peak_memory(path, TARGET, batch) for batch in (1, 1_000_000))
    # 1 000 000 inputs of 6 floats are 24 MB, and the outputs as many again
    assert large.peak_mib > small.peak_mib + 30
    assert large.process_mib > large.peak_mib
