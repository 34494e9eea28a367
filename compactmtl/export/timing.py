"""Latency of an artifact beside the dense model's, paired, and what else is measured of both."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.backends import Runner, get_backend
from compactmtl.config.target import Target
from compactmtl.export.writer import Writer
from compactmtl.graph.inputs import tensors_in
from compactmtl.verify.latency import measure_latency
from compactmtl.verify.profile import Options, Subject, measure
from compactmtl.verify.result import SINGLE, LatencyResult, Measured

DENSE, COMPACT = "dense", "compact"  # names in the latency table
BATCHES = (1, 4, 8)  # of the throughput, where the batch is free
MOST_REPEATS = 50  # of the throughput at batch 1


def measure_artifact(
    writer: Writer,
    models: Mapping[str, nn.Module | None],
    artifact: Path,
    runner: Runner,
) -> tuple[LatencyResult, dict[str, Measured]]:
    """Latency, throughput, peak memory and layers, paired on the same backend: the dense model, the artifact, their float32 forms.

    `models` holds DENSE, which may be None, and the artifact's model under its own name. The dense model is in the
    artifact's precision, int8 with every layer quantized: what surgery gains. The float32 form of an artifact of
    lower precision tells what precision gains, the dense model's what both do.
    """
    target = writer.target
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))

        def opened(name: str, model: nn.Module, writer: Writer) -> Subject:
            path = folder / name.replace(" ", "-") / MODEL_FILE
            writer.write(model, path)
            runner = get_backend(target.backend).open(path, writer.target)
            return Subject(path, writer.target, stack.enter_context(runner))

        dense = models[DENSE]
        (name,) = set(models) - {DENSE}
        subjects: dict[str, Subject] = {}
        if dense is not None:
            subjects[DENSE] = opened(DENSE, dense, writer)
        subjects[name] = Subject(artifact, target, runner)
        if target.precision != "fp32":
            for one in (DENSE, name):
                if (model := models[one]) is not None:
                    subjects[one + SINGLE] = opened(one + SINGLE, model, writer.at("fp32"))
        inputs = writer.inputs
        latency = measure_latency(
            {name: subject.runner for name, subject in subjects.items()},
            inputs,
            warmup=target.latency.warmup,
            repeats=target.latency.repeats,
            settle=target.latency.settle,
        )
        return latency, measure(_sized(subjects, writer), _options(target))


def _options(target: Target) -> Options:
    batch = target.latency.batch
    return Options(
        batch=batch,
        batches=BATCHES if target.onnx.dynamic_batch else (batch,),
        warmup=target.latency.warmup,
        repeats=min(target.latency.repeats, MOST_REPEATS),
        settle=target.latency.settle,
        layer_repeats=min(target.latency.repeats, Options.layer_repeats),
    )


def _sized(subjects: Mapping[str, Subject], writer: Writer) -> dict[str, Subject]:
    """The subjects with the example's shapes, where more than the batch is free."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in zip(writer.input_names, tensors_in(writer.inputs), strict=True)
    }
    return {
        name: Subject(
            one.path,
            one.target,
            one.runner,
            {
                info.name: shapes[info.name]
                for info in one.runner.inputs
                if info.shape is not None and None in info.shape[1:]
            },
        )
        for name, one in subjects.items()
    }
