"""The check of GPU machines: what it writes, how it goes on after a crash, and that its checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from compactmtl.errors import ConfigError, MissingDependencyError
from tools import gpu_check
from tools.gpu_check import NEVER, Row, main, run_all, run_check, summary, table
from tools.gpu_checks import CHECKS, Check, CheckFailed, Outcome, Setting

PAGE = Path(__file__).resolve().parents[2] / "docs/results/gpu.md"
MACHINE: dict[str, Any] = {
    "device": {"name": "H1", "capability": "9.0", "memory": 1, "driver": "13.0", "bus": "0"},
    "versions": {"torch": "2.14.1"},
    "commit": "abc",
    "rehearsed": False,
}
# What a check's process does, by the check's name.
SCRIPTS = {
    "training": "write('passed', '', {'worst': 1e-5})",
    "deterministic": "import os, signal; print('before'); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGSEGV)",
    "shrinking": "import subprocess, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
    "memory": "write('skipped', 'no counter', None)",
    "waits": "print('Traceback'); raise ValueError('a bug of the check')",
    "nccl": "write('failed', 'gradients differ', {'worst': 1.0})",
}
NAMES = list(SCRIPTS)
HEAD = "import json, sys\ndef write(*values): json.dump(dict(zip(('status', 'reason', 'measured'), values)), open(RESULT, 'w'))\n"


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("cpu", tmp_path, True)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Children that do what SCRIPTS says; the names of those that ran."""
    ran: list[str] = []

    def command(check: Check, setting: Setting, result: Path) -> list[str]:
        ran.append(check.name)
        return [sys.executable, "-c", f"RESULT = {str(result)!r}\n{HEAD}{SCRIPTS[check.name]}"]

    monkeypatch.setattr(gpu_check, "child_command", command)
    monkeypatch.setattr(gpu_check, "machine", lambda rehearse: MACHINE)
    return ran


@pytest.mark.slow
def test_a_crash_or_a_hang_ends_one_check_alone(setting: Setting, scripted: list[str]) -> None:
    rows = {name: run_check(CHECKS[name], setting, 3.0) for name in NAMES}
    assert {name: row.status for name, row in rows.items()} == {
        "training": "passed",
        "deterministic": "crashed",
        "shrinking": "timeout",
        "memory": "skipped",
        "waits": "crashed",
        "nccl": "failed",
    }
    assert rows["deterministic"].reason == "signal SIGSEGV: before"
    assert rows["waits"].reason == "exit code 1: ValueError: a bug of the check"
    assert rows["training"].measured == {"worst": 1e-5}
    assert 3.0 <= rows["shrinking"].seconds < 10
    assert "1 passed, 1 failed, 1 skipped, 2 crashed, 1 timeout of 6" in summary(list(rows.values()), 6)


@pytest.mark.slow
def test_the_file_is_whole_after_each_check_and_a_second_call_goes_on(
    setting: Setting, scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    seen: list[int] = []

    def noting(path: Path, text: str) -> None:
        seen.append(len(json.loads(text)["checks"]))
        path.write_text(text)

    monkeypatch.setattr(gpu_check, "write_text", noting)
    names = ["training", "deterministic", "memory", "nccl"]
    run_all(names, setting, out, again=False, budget=60)
    assert seen == [1, 2, 3, 4]
    scripted.clear()
    rows = run_all([*names, "waits"], setting, out, again=False, budget=60)
    assert scripted == ["deterministic", "waits"]  # what crashed, and what is new
    assert [row.status for row in rows] == ["passed", "crashed", "skipped", "failed", "crashed"]
    scripted.clear()
    assert run_all(["training"], setting, out, again=True, budget=60)[0].status == "passed"
    assert scripted == ["training"]
    assert run_all(["nccl"], setting, out, again=True, budget=0.5) == []  # no time left


def test_a_file_of_another_machine_is_not_gone_on_with(
    setting: Setting, scripted: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    run_all(["training"], setting, out, again=False, budget=60)
    found = json.loads(out.read_text())
    found["machine"]["versions"] = {"torch": "2.9"}
    out.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="measured with another versions"):
        run_all(["training"], setting, out, again=False, budget=60)
    out.write_text("{}")
    with pytest.raises(ConfigError, match="holds no results of format 1"):
        run_all(["training"], setting, out, again=False, budget=60)
    out.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        run_all(["training"], setting, out, again=False, budget=60)


def results(*rows: Row, **changes: Any) -> dict[str, Any]:
    return {"format": 1, "machine": MACHINE | changes, "checks": [asdict(row) for row in rows]}


def test_the_page_shows_the_table_and_that_nothing_was_run() -> None:
    shown = PAGE.read_text().partition("--table -->\n")[2].partition("<!-- end -->")[0]
    assert shown.strip() == table([])
    lines = table([]).splitlines()[2:]
    assert len(lines) == len(CHECKS)
    assert all(line.endswith(f"| {NEVER} |") for line in lines)


def test_a_table_names_the_device_and_every_outcome() -> None:
    found = results(
        Row("training", "passed", 1.0, "", {"worst": 0.00012}),
        Row("memory", "skipped", 1.0, "no | counter\nhere"),
        Row(
            "latency-fp32",
            "passed",
            1.0,
            "",
            {"eager": 2.5, "dense_ms": 1.0, "not_run": {"graph": "no CUDA"}},
        ),
    )
    shown = {line.split("`")[1]: line for line in table([found, results()]).splitlines()[2:]}
    assert "| H1, torch 2.14.1, driver for CUDA 13.0 |" in table([found]).splitlines()[0]
    assert shown["training"].endswith("| largest difference 1.2e-04 | never run |")
    assert "| skipped: no / counter here |" in shown["memory"]
    assert "eager 2.50×, dense eager 1.000 ms, graph not run: no CUDA" in shown["latency-fp32"]
    assert shown["nccl"].endswith(f"| {NEVER} | {NEVER} |")
    with pytest.raises(ConfigError, match="measures nothing"):
        table([results(rehearsed=True)])


def test_what_a_check_raises_is_its_outcome(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception | None) -> Outcome:
        def run(self: Check, setting: Setting) -> dict[str, Any]:
            if error is not None:
                raise error
            return {"a": 1}

        monkeypatch.setattr(Check, "run", run)
        return Outcome.of(CHECKS["nccl"], setting)

    assert raising(None) == Outcome("passed", "", {"a": 1})
    assert raising(CheckFailed("worse", {"b": 2})) == Outcome("failed", "worse", {"b": 2})
    assert raising(MissingDependencyError("no NCCL")) == Outcome("skipped", "no NCCL", None)
    with pytest.raises(ZeroDivisionError):  # a bug: the process ends, and the row is a crash
        raising(ZeroDivisionError())


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "cuda_device", lambda: (None, "no NVIDIA driver: gone"))
    assert main([]) == 3
    assert "no NVIDIA driver: gone" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CHECKS)
    assert main(["--table"]) == 0
    assert capsys.readouterr().out.strip() == table([])


@pytest.mark.slow
def test_listing_the_checks_loads_no_torch() -> None:
    code = "import sys, tools.gpu_checks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PAGE.parents[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "same-draws",
        "training",
        "deterministic",
        "shrinking",
        "autocast-bfloat16",
        "channels-last",
        "latency-fp32",
        "onnxruntime-cuda-fp32",
        "nccl",
    ],
)
def test_a_check_passes_in_a_rehearsal(name: str, setting: Setting) -> None:
    found = Outcome.of(CHECKS[name], setting)
    assert (found.status, found.reason) == ("passed", "")
    assert found.measured is not None
    json.dumps(found.measured)
    told = CHECKS[name].told(found.measured)
    assert told
    if name == "latency-fp32":
        assert "graph not run: CUDA graphs need CUDA" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "waits"])
def test_a_check_that_needs_a_gpus_counters_is_skipped(name: str, setting: Setting) -> None:
    assert Outcome.of(CHECKS[name], setting).status == "skipped"


def spoil(function: Callable[..., Any], change: Callable[[Any, int], Any]) -> Callable[..., Any]:
    """`function` with its result changed by how often it was called."""
    calls = iter(range(1000))
    return lambda *args, **kwargs: change(function(*args, **kwargs), next(calls))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "change", "reason"),
    [
        (
            "training",
            "train_steps",
            lambda losses, call: [x * (1 + 0.02 * call) for x in losses],
            "losses differ by 2",
        ),
        (
            "deterministic",
            "_digest",
            lambda digest, call: digest + str(call == 1),
            "of the second run differ",
        ),
        (
            "deterministic",
            "_digest",
            lambda digest, call: digest + str(call == 2),
            "of the resumed run differ",
        ),
        (
            "autocast-bfloat16",
            "train_steps",
            lambda losses, call: [x + call for x in losses],
            "mean loss differs by",
        ),
        (
            "channels-last",
            "train_steps",
            lambda losses, call: [x * (1 + call) for x in losses],
            "losses differ by",
        ),
    ],
)
def test_a_check_fails_where_its_bound_does_not_hold(
    name: str,
    target: str,
    change: Callable[[Any, int], Any],
    reason: str,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tools.gpu_checks import training

    monkeypatch.setattr(training, target, spoil(getattr(training, target), change))
    found = Outcome.of(CHECKS[name], setting)
    assert found.status == "failed"
    assert reason in found.reason


@pytest.mark.slow
def test_a_runtime_that_this_version_lacks_is_named(setting: Setting) -> None:
    pytest.importorskip("timm")
    from compactmtl.backends import get_backend
    from tools.gpu_checks.latency import runtime_latency, runtime_target

    with pytest.raises(MissingDependencyError, match="no backend abacus"):
        runtime_latency(setting, "abacus", "", "fp32")
    for check in CHECKS.values():
        if check.call.endswith("runtime_latency"):
            try:
                target = runtime_target(*check.arguments)
            except MissingDependencyError:
                continue
            get_backend(target.backend).availability(target)  # its keys are read
            assert target.precision == check.arguments[2]


@pytest.mark.slow
def test_the_command_runs_a_check_in_its_own_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["--rehearse", "--only", "nccl", "--out", str(out)]) == 0
    found = gpu_check.read(out)
    assert found["machine"]["rehearsed"]
    assert [(row["name"], row["status"]) for row in found["checks"]] == [("nccl", "passed")]
    assert "1 passed of 1" in capsys.readouterr().out
