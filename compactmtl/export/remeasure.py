"""Time an exported run again: its bundle stays, the latency in its verification and the gates on it are new."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from compactmtl.artifacts.files import new_folder, sha256_file
from compactmtl.artifacts.layout import EXPORT
from compactmtl.artifacts.lock import exclusive
from compactmtl.artifacts.told import now
from compactmtl.backends.versions import package_versions
from compactmtl.data.inputs import between
from compactmtl.errors import ArtifactError, command
from compactmtl.export.artifact import ArtifactWriter, Validation
from compactmtl.export.bundle import Bundle, write_verification
from compactmtl.export.timing import COMPACT, DENSE, measure_artifact
from compactmtl.models import MultiTaskModel
from compactmtl.runs import Run
from compactmtl.verify.gates import check_gates, verified
from compactmtl.verify.result import Verification


@exclusive("export")
def remeasure_run(
    run: Run,
    target_name: str,
    baseline: Run | None = None,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Measure the latency of the run's bundle for a target again, and hold the gates against it.

    Parity and accuracy stay as they were. The artifact is timed beside what it was exported with: the dense model of
    `baseline`, by default the run's own before surgery, and float32 forms. `progress` is told each step in a line.

    Raises ArtifactError where there is no such bundle, it was not verified, or it is of another model than the run has
    now; the bundle stays as it was where anything raises.
    """
    place = run.path / EXPORT / target_name
    again = command("export", run.path, "--target", target_name)
    if not place.is_dir():
        raise ArtifactError(f"{run.path} was not exported to {target_name}", f"export it: {again}")
    bundle = Bundle.open(place)
    before, target = bundle.verification, bundle.info.target
    if before is None:
        raise ArtifactError(f"{place} was never verified", f"export it again: {again}")
    if bundle.info.weights_sha256 != sha256_file(run.deployed_weights):
        raise ArtifactError(
            f"{place} is of another model than {run.path} has now", f"export it again: {again}"
        )
    model = run.load_compact() if run.has_compact else run.load_plain()
    dense: MultiTaskModel | None = None
    if run.has_compact or baseline is not None:
        dense = run.load_plain() if baseline is None else baseline.load_plain()
    data = Validation.load(run, target)
    writer = ArtifactWriter(run, target, between(data.images, 0, target.latency.batch))
    subject = COMPACT if run.has_compact else "model"
    progress(f"measuring latency, {target.latency.repeats} rounds")
    with bundle.runner() as runner:
        latency, measured = measure_artifact(
            writer, {DENSE: dense, subject: model}, bundle.model_path, runner
        )
    gates = check_gates(
        target,
        run.measured,
        parity=before.parity,
        accuracy=before.accuracy,
        latency=latency,
        subject=subject,
        megabytes=before.megabytes,
    )
    after = before.model_copy(
        update={
            "latency": latency,
            "measured": measured,
            "gates": gates,
            "passed": verified(gates),
            "versions": package_versions(),
            "created": now(),
        }
    )
    with new_folder(place) as folder:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        write_verification(folder, after)
    return after
