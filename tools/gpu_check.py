"""Everything that a machine with an NVIDIA GPU can check, by one command, in under ten minutes and without a network.

python -m tools.gpu_check                      # all checks; the table is printed, results are in gpu-check.json
python -m tools.gpu_check --only training latency-fp16
python -m tools.gpu_check --rehearse           # on the CPU with tiny sizes: tries this tool, measures nothing
python -m tools.gpu_check --table [RESULTS.json ...]   # the Markdown of docs/results/gpu.md

Each check runs in a process of its own with a time limit, so that a crash or a hang ends that check alone; the file is
written after each. A second call goes on: what passed, failed or was skipped on the same machine with the same versions is
kept, and what crashed, ran out of time or was not reached is run. A check that cannot run is skipped, and says what is missing.

Exits 0 where nothing failed, 1 where a check failed, crashed or ran out of time, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import write_text
from compactmtl.backends.driver import cuda_device
from compactmtl.backends.fit import package_version
from compactmtl.backends.machine import cpu_count, cpu_name, nvidia_gpus
from compactmtl.backends.versions import package_versions
from compactmtl.errors import CompactError, ConfigError
from tools.gpu_checks import CHECKS, Check, Outcome, Setting

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
OUT = "gpu-check.json"
BUDGET = 570.0  # seconds, so that all is done in ten minutes
FINAL = ("passed", "failed", "skipped")  # what a second call does not run again
BAD = ("failed", "crashed", "timeout")
NEVER = "never run"


@dataclass
class Row:
    """What came of a check. `reason` says why it did not pass; `measured` holds its figures."""

    name: str
    status: str  # passed, failed, skipped, crashed, timeout
    seconds: float
    reason: str = ""
    measured: dict[str, Any] | None = None


def machine(*, rehearse: bool) -> dict[str, Any]:
    """The device by name, with the driver, and all versions that decide the figures."""
    device, reason = cuda_device()
    gpus, _ = nvidia_gpus()
    packages = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "triton")
    return {
        "device": asdict(device) if device is not None and not rehearse else None,
        "missing": "" if device is not None else reason,
        "driver": list(gpus),
        "host": {"processor": cpu_name(), "processors": cpu_count(), "system": platform.platform()},
        "versions": package_versions()
        | {name: version for name in packages if (version := package_version(name)) is not None},
        "commit": _commit(),
        "rehearsed": rehearse,
    }


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def read(path: Path) -> dict[str, Any]:
    """A results file. Raises ConfigError naming a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", f"give a file that {Path(__file__).name} wrote"
        ) from error
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or not isinstance(found.get("checks"), list)
    ):
        raise ConfigError(
            f"{path} holds no results of format {FORMAT}",
            "give another file, or remove it and run the checks again",
        )
    return found


def former(path: Path, where: Mapping[str, Any], again: bool) -> dict[str, Row]:
    """The rows of an earlier call that stand. Raises ConfigError for a file of another machine or of other versions."""
    if again or not path.exists():
        return {}
    found = read(path)
    differing = [
        key
        for key in ("device", "versions", "commit", "rehearsed")
        if found["machine"].get(key) != where[key]
    ]
    if differing:
        raise ConfigError(
            f"{path} was measured with another {', '.join(differing)}",
            "give another --out, or --again to replace it",
        )
    return {row["name"]: Row(**row) for row in found["checks"] if row["status"] in FINAL}


def run_check(check: Check, setting: Setting, limit: float) -> Row:
    """Run a check in a process of its own, for at most `limit` seconds; whatever it does, a row comes back."""
    result = setting.folder / f"{check.name}.json"
    result.unlink(missing_ok=True)
    command = child_command(check, setting, result)
    log = setting.folder / f"{check.name}.log"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env=_environment(),
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            _end(child)
            return Row(check.name, "timeout", time.perf_counter() - start, f"not done after {limit:.0f} s")
        except BaseException:
            _end(child)
            raise
    seconds = time.perf_counter() - start
    if code or not result.exists():
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Row(check.name, "crashed", seconds, f"{ended}: {said[-1] if said else 'no output'}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return Row(check.name, found["status"], seconds, found["reason"], found["measured"])


def child_command(check: Check, setting: Setting, result: Path) -> list[str]:
    """What runs a check in a process of its own."""
    command = [sys.executable, "-m", "tools.gpu_check", "--child", check.name, "--result", str(result)]
    return (
        command
        + ["--device", setting.device, "--folder", str(setting.folder)]
        + ["--rehearse"] * setting.tiny
    )


def _environment() -> dict[str, str]:
    """The child's: the checkout first on the path, and no network for libraries that would ask one."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a check with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def child(name: str, setting: Setting, result: Path) -> None:
    """Run one check here and write its outcome; an exception that is no failure of the check ends the process."""
    outcome = Outcome.of(CHECKS[name], setting)
    write_text(result, json.dumps(asdict(outcome)) + "\n")


def run_all(names: Sequence[str], setting: Setting, out: Path, *, again: bool, budget: float) -> list[Row]:
    """Run the checks one after the other; `out` is written after each."""
    where = machine(rehearse=setting.tiny)
    done = former(out, where, again)
    started, begun = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    for name in names:
        if name in done:
            print(f"{name}: {done[name].status} (kept)", flush=True)
            continue
        left = budget - (time.perf_counter() - started)
        if left < 1:
            print(f"{name}: not reached in {budget:.0f} s; call again to go on", flush=True)
            continue
        row = run_check(CHECKS[name], setting, min(CHECKS[name].seconds, left))
        print(f"{name}: {row.status} in {row.seconds:.0f} s {row.reason}".rstrip(), flush=True)
        done[name] = row
        rows = [asdict(done[one]) for one in CHECKS if one in done]
        write_text(
            out,
            json.dumps({"format": FORMAT, "at": begun, "machine": where, "checks": rows}, indent=1) + "\n",
        )
    return [done[name] for name in names if name in done]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a check, a column a machine; what no machine ran was never run."""
    heads = [_head(one["machine"]) for one in results] or ["result"]
    lines = [
        f"| check | what is checked | it passes where | {' | '.join(heads)} |",
        f"| --- | --- | --- |{' --- |' * len(heads)}",
    ]
    for check in CHECKS.values():
        cells = [_cell(check, one) for one in results] or [NEVER]
        lines.append(f"| `{check.name}` | {check.what} | {check.bound} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(where: Mapping[str, Any]) -> str:
    if where["rehearsed"]:
        raise ConfigError("a rehearsal measures nothing, and belongs in no table", "run the checks on a GPU")
    return f"{where['device']['name']}, torch {where['versions']['torch']}, driver for CUDA {where['device']['driver']}"


def _cell(check: Check, results: Mapping[str, Any]) -> str:
    row = next((one for one in results["checks"] if one["name"] == check.name), None)
    if row is None:
        return NEVER
    if row["status"] != "passed":
        return f"{row['status']}: {row['reason']}".replace("|", "/").replace("\n", " ")
    return check.told(row["measured"])


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(OUT), help=f"where results are written (default: {OUT})"
    )
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="CHECK", default=list(CHECKS))
    parser.add_argument("--again", action="store_true", help="run again what an earlier call has results of")
    parser.add_argument("--device", default="cuda:0", help="torch device (default: cuda:0)")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes on the CPU, to try the tool itself"
    )
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help=f"seconds for all (default: {BUDGET:.0f})"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--table", nargs="*", type=Path, metavar="FILE", help="print results as Markdown")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.list:
        print("\n".join(f"{check.name:<22} {check.what}" for check in CHECKS.values()))
        return 0
    device = "cpu" if args.rehearse else args.device
    if args.child is not None:
        child(args.child, Setting(device, args.folder, args.rehearse), args.result)
        return 0
    try:
        if args.table is not None:
            print(table([read(path) for path in args.table]))
            return 0
        if not args.rehearse and (reason := cuda_device()[1]):
            print(
                f"error: {reason}\n  run it on a machine with an NVIDIA GPU, or try it with --rehearse",
                file=sys.stderr,
            )
            return 3
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            setting = Setting(device, Path(folder), args.rehearse)
            rows = run_all(args.only, setting, args.out, again=args.again, budget=args.budget)
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(summary(rows, len(args.only)))
    return 1 if any(row.status in BAD for row in rows) else 0


def summary(rows: Sequence[Row], of: int) -> str:
    """The rows as a plain table, with what came of each."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [""]
    for row in rows:
        told = CHECKS[row.name].told(row.measured or {}) if row.status == "passed" else row.reason
        lines.append(f"{row.name:<{width}}  {row.status:<8}  {row.seconds:6.1f} s  {told}".rstrip())
    counts = {status: sum(row.status == status for row in rows) for status in (*FINAL, "crashed", "timeout")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return "\n".join([*lines, f"{told or 'nothing run'} of {of}"])


if __name__ == "__main__":
    sys.exit(main())
