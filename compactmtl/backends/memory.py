"""Peak memory of opening and running one model, in a process of its own: what others loaded doesn't count."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from compactmtl.config.recipe import Frozen
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError

SECONDS = 600


class Memory(Frozen):
    """What opening and running one model takes, beyond the runtime's own, in a process of its own."""

    opened_mib: float  # once the model is open
    peak_mib: float
    process_mib: float  # the whole process at its peak, with Python and the runtime
    device_mib: float | None = None  # of activations on the GPU, where there is one


def peak_memory(
    model: Path,
    target: Target,
    batch: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Memory:
    """Open `model` on the target in a new process, run it twice on noise, and say what that took.

    `batch` and `shapes` are of inputs with free dimensions, as `noise_for` takes them. Raises ArtifactError where
    that process fails.
    """
    free = json.dumps({"batch": batch or target.latency.batch, "shapes": dict(shapes or {})})
    command = [sys.executable, "-m", __name__, str(model), target.model_dump_json(), free]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines() or ["no reason given"]
        raise ArtifactError(
            f"{model} can't be run in a process of its own: {said[-1]}",
            "leave memory out: `compactmtl profile MODEL --no-memory`",
        )
    return Memory.model_validate_json(answer.stdout.splitlines()[-1])


def highest() -> int:
    """Most bytes that this process has held. On Linux ru_maxrss would begin with what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _measure(model: Path, target: Target, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> Memory:
    from compactmtl.backends import get_backend
    from compactmtl.backends.noise import noise_for

    backend = get_backend(target.backend)
    backend.availability(target)  # imports the runtime, which is no part of the model
    before = highest()
    with backend.open(model, target) as runner:
        opened = highest()
        arrays = noise_for(runner.inputs, batch, shapes)
        for _ in range(2):
            runner.run(arrays)
        device = runner.device_bytes
        return Memory(
            opened_mib=(opened - before) / 2**20,
            peak_mib=(highest() - before) / 2**20,
            process_mib=highest() / 2**20,
            device_mib=None if device is None else device / 2**20,
        )


if __name__ == "__main__":
    chosen = Target.model_validate_json(sys.argv[2])
    print(_measure(Path(sys.argv[1]), chosen, **json.loads(sys.argv[3])).model_dump_json())
