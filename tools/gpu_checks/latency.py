"""Latency of ResNet-18, dense against compact: in torch three ways, and in the runtimes that are installed. Paired."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from compactmtl.backends import get_backend
from compactmtl.backends.registry import all_backends
from compactmtl.config.target import Target
from compactmtl.errors import MissingDependencyError
from compactmtl.export import export_onnx
from compactmtl.export.precision import apply_precision
from compactmtl.graph.float32 import float32_products
from compactmtl.surgery import compact
from compactmtl.verify import LatencyResult, check_parity, measure_latency
from compactmtl.verify.speed import speed_of
from tools.bench_latency import empty
from tools.gpu_checks import CheckFailed, Setting

SHARE, ALIGN = 0.7, 16
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest |difference| of two ways to run one network, of the largest output: kernels are fused and sum in another order.
AGREE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}


def networks(setting: Setting) -> tuple[dict[str, nn.Module], Tensor]:
    """ResNet-18 whole and with its dead channels removed, on the CPU in float32, and an image."""
    torch.manual_seed(0)
    name, size = ("test_resnet", 32) if setting.tiny else ("resnet18", 224)
    align = 1 if setting.tiny else ALIGN
    dense = timm.create_model(name, num_classes=16, zero_init_last=False).eval()
    image = torch.randn(1, 3, size, size)
    masked = copy.deepcopy(dense)
    empty(masked, image, SHARE, align)
    return {"dense": dense, "compact": compact(masked, (image,), align=align).model.eval()}, image


def repeats(setting: Setting) -> tuple[int, int]:
    """Rounds to warm up and to measure."""
    return (1, 4) if setting.tiny else (20, 200)


def torch_latency(setting: Setting, precision: str) -> dict[str, Any]:
    """Eager, compiled and as a CUDA graph; a way that does not work here is named with the reason."""
    models, image = networks(setting)
    device, dtype = torch.device(setting.device), DTYPES[precision]
    given = image.to(device, dtype)
    measured: dict[str, Any] = {"not_run": {}, "ratios": {}}
    with torch.no_grad(), float32_products():
        placed = {name: model.to(device, dtype) for name, model in models.items()}
        expected = {name: model(given) for name, model in placed.items()}
        compiler = (
            "eager" if setting.tiny else "inductor"
        )  # a rehearsal traces, and waits for no C++ compiler
        ways: dict[str, Callable[[nn.Module, Tensor], Callable[[], Tensor]]] = {
            "eager": _eager,
            "compiled": partial(_compiled, compiler=compiler),
            "graph": _graph,
        }
        for way, build in ways.items():
            try:
                calls = {name: build(model, given) for name, model in placed.items()}
                outputs = {name: call() for name, call in calls.items()}
            except MissingDependencyError as error:
                measured["not_run"][way] = error.message
                continue
            for name, output in outputs.items():
                _agree(f"{name}, {way}", output, expected[name], AGREE[precision])
            waiting = {name: _waiting(call, device) for name, call in calls.items()}
            warmup, rounds = repeats(setting)
            result = measure_latency(waiting, warmup=warmup, repeats=rounds)
            measured[way], measured["ratios"][way] = _ratio(result), _figures(result)
    measured["dense_ms"] = measured["ratios"]["eager"]["milliseconds"]["dense"]
    return measured


def _eager(model: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    return lambda: model(image)


def _compiled(model: nn.Module, image: Tensor, compiler: str) -> Callable[[], Tensor]:
    try:
        compiled = torch.compile(model, dynamic=False, backend=compiler)
        compiled(image)
    except Exception as error:  # Triton, a compiler of C++ or a header is missing: each raises its own
        raise MissingDependencyError(
            f"torch.compile: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}",
            "install Triton and a C++ compiler",
        ) from error
    return lambda: compiled(image)


def _graph(model: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    if image.device.type != "cuda":
        raise MissingDependencyError("CUDA graphs need CUDA", "run it on a GPU")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is allocated once must be there before the capture
        for _ in range(3):
            model(image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(image)

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def _waiting(call: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    """A call that returns when its work is done."""
    if device.type != "cuda":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize(device)

    return wait


def _agree(name: str, output: Tensor, expected: Tensor, bound: float) -> None:
    worst = float((output.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not worst <= bound:
        raise CheckFailed(f"{name}: outputs differ by {worst:.1e} of the largest, more than {bound:.0e}")


def _ratio(result: LatencyResult) -> float:
    return speed_of(result, "compact", "dense").ratio


def _figures(result: LatencyResult) -> Mapping[str, Any]:
    """Medians, and the ratio's band over the rounds."""
    speed = speed_of(result, "compact", "dense")
    return {
        "ratio": [speed.ratio, speed.low or math.nan, speed.high or math.nan],
        "milliseconds": {name: one.median_ms for name, one in result.stats.items()},
        "variation": {name: one.variation for name, one in result.stats.items()},
    }


def runtime_target(backend: str, provider: str, precision: str) -> Target:
    """The target of a runtime's check. Raises MissingDependencyError for a backend of a later version."""
    if backend not in {one.name for one in all_backends()}:
        raise MissingDependencyError(f"this version has no backend {backend}", "use a later version")
    target = Target(backend=backend, precision=precision)
    return target.with_own({"provider": provider}) if provider else target


def runtime_latency(setting: Setting, backend: str, provider: str, precision: str) -> dict[str, Any]:
    """A runtime: parity of the compact network with torch's on the CPU, and latency."""
    target = runtime_target(backend, provider, precision)
    if setting.tiny:  # the same road through the runtime that every machine has
        target = Target(backend="onnxruntime")
    found = get_backend(target.backend).availability(target)
    if not found.available:
        raise MissingDependencyError(found.reason, found.hint)
    models, image = networks(setting)
    warmup, rounds = repeats(setting)
    with ExitStack() as stack:
        runners, parities = {}, {}
        for name, model in models.items():
            path = export_onnx(
                model,
                image,
                setting.folder / f"{backend}-{provider}-{precision}-{name}.onnx",
                input_names=["image"],
            )
            apply_precision(path, target)
            parity = check_parity(
                model, path, [image, torch.randn_like(image), torch.rand_like(image)], target=target
            )
            parities[name] = max(one.max_relative for one in parity.outputs)
            if not parity.passed:
                raise CheckFailed(
                    f"{name}: outputs differ by {parities[name]:.1e} of their range", {"parity": parities}
                )
            runners[name] = stack.enter_context(get_backend(target.backend).open(path, target))
        result = measure_latency(runners, image, warmup=warmup, repeats=rounds)
        described = runners["compact"].describe()
    return {
        "speedup": _ratio(result),
        "dense_ms": result.stats["dense"].median_ms,
        "parity": max(parities.values()),
        "figures": _figures(result),
        "provider": described.provider,
        "precision": described.precision,
        "version": described.version,
    }
