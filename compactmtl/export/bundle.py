"""The bundle: a model file with all that is needed to run it and to know where it came from.

    <bundle>/ model.onnx (· model.onnx.data) · bundle.json · bundle.schema.json · golden.png · golden.npz
              · infer.py · shared.py (· picture.py · pixels.py · sample.py · show.py · panoptic.py · runtime.py) · verification.json · hashes.json

bundle.json lists the SHA-256 of each model file; verification.json names the SHA-256 of bundle.json; hashes.json lists
that of every file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from compactmtl.artifacts.files import parse_json, sha256_file, write_text
from compactmtl.artifacts.hashes import check_files, read_hashes, write_hashes
from compactmtl.artifacts.layout import BUNDLE_FILE, VERIFICATION_FILE
from compactmtl.backends import Runner, all_backends, checked_target, get_backend
from compactmtl.backends.model_file import external_files
from compactmtl.backends.targets import machine_files
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, ConfigError, GateError
from compactmtl.export.older import upgraded
from compactmtl.export.record import VERSION, BundleInfo, BundleTask
from compactmtl.export.script import SCHEMA, scripts, source
from compactmtl.tasks.base import Task
from compactmtl.tasks.build import recorded_task
from compactmtl.tasks.reading import Reading, readings_of
from compactmtl.verify.result import JUDGING, Verification

VERIFICATION_VERSION = 1  # of verification.json
_Record = TypeVar("_Record")


class BundleVersionError(ArtifactError):
    """A bundle written by a version of compactmtl whose format this one can't read."""


class BundleHashError(ArtifactError):
    """A file of a bundle that isn't the one that was exported, or was verified."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are those that were exported. `Bundle.open(path)`."""

    path: Path
    info: BundleInfo

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check a bundle's folder.

        Raises ArtifactError where it is no bundle or bundle.json is damaged, BundleVersionError, and
        BundleHashError where a model file or the verification isn't the one that belongs to it.
        """
        path = Path(path)
        if not (path / BUNDLE_FILE).is_file():
            raise ArtifactError(
                f"{path} is not a bundle: it has no {BUNDLE_FILE}", "give an export/<target> folder"
            )
        info = read_info(path / BUNDLE_FILE)
        info = info.model_copy(update={"target": _checked(info.target, path / BUNDLE_FILE)})
        if info.model not in info.files:
            raise ArtifactError(
                f"{path / BUNDLE_FILE}: model {info.model} is not among its files", _EXPORT_AGAIN
            )
        for name, expected in info.files.items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"{path} lacks {name}", _EXPORT_AGAIN)
            if sha256_file(file) != expected:
                raise BundleHashError(
                    f"{file} is not the file that was exported: its hash is off", _EXPORT_AGAIN
                )
        bundle = cls(path, info)
        bundle._check_unlisted()
        verification = bundle.verification
        if verification is not None and verification.bundle_sha256 != bundle.sha256:
            raise BundleHashError(
                f"{path / VERIFICATION_FILE} is of another bundle: {BUNDLE_FILE} has changed since",
                _EXPORT_AGAIN,
            )
        bundle._check_hashes()
        return bundle

    def _check_hashes(self) -> None:
        """Hold the files that bundle.json does not list against hashes.json.

        What was left behind where the bundle was copied in part, such as pictures of errors, may be missing; without its
        verification the bundle is doubted.
        """
        hashes = read_hashes(self.path, _EXPORT_AGAIN)
        if hashes is None:  # written before there were any: bundle.json and verification.json hold each other
            return
        names = [name for name in hashes.files if (self.path / name).exists()]
        check_files(self.path, hashes, _EXPORT_AGAIN, [name for name in names if name not in self.info.files])

    @property
    def model_path(self) -> Path:
        return self.path / self.info.model

    @property
    def megabytes(self) -> float:
        """Size of all model files in 10^6 bytes."""
        return sum((self.path / name).stat().st_size for name in self.info.files) / 1e6

    @cached_property
    def sha256(self) -> str:
        """Hash of bundle.json, which lists the hashes of all model files."""
        return sha256_file(self.path / BUNDLE_FILE)

    @cached_property
    def verification(self) -> Verification | None:
        """What verification found; None where the bundle was never verified."""
        file = self.path / VERIFICATION_FILE
        return _read_verification(file) if file.exists() else None

    @property
    def doubt(self) -> str:
        """Why not to trust this bundle, in words; empty where it was verified and every gate held."""
        if self.verification is None:
            return "it was never verified"
        failed = [gate.message for gate in self.verification.gates if not gate.passed]
        if not any(gate.gate in JUDGING for gate in self.verification.gates):
            failed.append(
                "no gate is on its outputs: nothing measured its accuracy, and the target sets no parity.tolerance"
            )
        if failed or not self.verification.passed:
            return "its verification failed: " + "; ".join(failed)
        return ""

    def require(self) -> Self:
        """The bundle itself where it was verified and every gate held. Raises GateError, exit code 4, where not."""
        if self.doubt:
            raise GateError(
                f"{self.path} is not to be trusted: {self.doubt}",
                "the bundle is kept and marked as failed; mend the model or, knowingly, the target's bound",
            )
        return self

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """What reads each output, from the bundle alone: neither the data set nor torch is needed.

        Raises ArtifactError where a task's record is damaged, UntrustedError for a kind of the user's own without the
        user's word.
        """
        return {
            name: recorded_task(name, task.config, task.spec, task.channels)
            for name, task in self.info.tasks.items()
        }

    @property
    def readings(self) -> dict[str, Reading]:
        """Deprecated: `tasks`."""
        return readings_of(self.tasks, "Bundle")

    def runner(self, lean_runtime: Path | None = None) -> Runner:
        """The model, opened on its target's backend.

        `lean_runtime` is a library that runs an engine of an earlier version. It runs with the user's rights, so it
        takes the user's word (`compactmtl.config.trust`). Raises ConfigError where the bundle's backend loads none.
        """
        target = self.info.target
        backend = get_backend(target.backend)
        if lean_runtime is None:
            return backend.open(self.model_path, target)
        served = backend.with_lean_runtime(target, lean_runtime)
        if served is None:
            raise ConfigError(
                f"{self.path} runs on {target.backend}, which loads no lean runtime", "leave it out"
            )
        return backend.open(self.model_path, served)

    def _check_unlisted(self) -> None:
        """Raise BundleHashError for a file that a backend would read with the model and that bundle.json has no hash of."""
        if self.model_path.suffix != ".onnx":
            return
        companions = (name for backend in all_backends() for name in backend.companions(self.model_path))
        for name in (*external_files(self.model_path), *companions):
            if name not in self.info.files and (self.path / name).exists():
                raise BundleHashError(
                    f"{self.path / name} would be read with the model and is not among the bundle's files",
                    _EXPORT_AGAIN,
                )


def write_bundle(folder: Path, info: BundleInfo) -> Bundle:
    """Write bundle.json, its schema and its programs beside the files that are in `folder`, and open the bundle."""
    write_text(folder / SCHEMA, source(SCHEMA))
    for name, text in scripts(info).items():
        write_text(folder / name, text)
    write_text(folder / BUNDLE_FILE, info.text())
    return Bundle.open(folder)


def write_verification(folder: Path, verification: Verification) -> None:
    """Write verification.json into a bundle's folder, and hashes.json over all that is there."""
    write_text(folder / VERIFICATION_FILE, verification.model_dump_json(indent=2) + "\n")
    write_hashes(folder)


def bundle_tasks(tasks: Mapping[str, Task], configs: Mapping[str, TaskConfig]) -> dict[str, BundleTask]:
    """What the bundle keeps of each task."""
    return {
        name: BundleTask(
            kind=task.kind,
            primary=task.primary,
            dense=task.dense,
            channels=task.channels,
            config=configs[name],
            spec=task.spec,
        )
        for name, task in tasks.items()
    }


_EXPORT_AGAIN = "export the run again: compactmtl export RUN --target NAME"


def _checked(target: Target, where: Path) -> Target:
    """The target of a bundle with its backend's keys checked. Raises ArtifactError, also for a file of one machine."""
    try:
        checked = checked_target(target)
    except ConfigError as error:
        raise ArtifactError(f"{where}: target: {error.message}", _EXPORT_AGAIN) from error
    for key, value in machine_files(target).items():
        raise ArtifactError(
            f"{where}: target.{key} names {value!r}: a bundle may name no file of a machine",
            f"{_EXPORT_AGAIN}; what runs it may name such a file itself",
        )
    return checked


def read_info(path: Path) -> BundleInfo:
    """A bundle.json of this or an older format. Raises BundleVersionError or ArtifactError."""
    values = _content(path)
    version = values.get("version") if isinstance(values, dict) else None
    if version == 1:
        return _validated(path, upgraded, values)
    if version != VERSION:
        raise _other_version(path, version, f"1 and {VERSION}")
    return _validated(path, BundleInfo.model_validate, values)


def _read_verification(path: Path) -> Verification:
    values = _content(path)
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERIFICATION_VERSION:
        raise _other_version(path, version, str(VERIFICATION_VERSION))
    return _validated(path, Verification.model_validate, values)


def _content(path: Path) -> Any:

    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", _EXPORT_AGAIN) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}", _EXPORT_AGAIN) from error


def _other_version(path: Path, version: object, known: str) -> BundleVersionError:
    return BundleVersionError(
        f"{path} is of format {version}, this version of compactmtl reads {known}",
        "use the version of compactmtl that wrote it, or export the run again",
    )


def _validated(path: Path, validate: Callable[[Any], _Record], values: Any) -> _Record:
    try:
        return validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}", _EXPORT_AGAIN) from error
