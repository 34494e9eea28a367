"""Two machines, as two network namespaces of this host, train one run through torchrun's rendezvous; one dies, and they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from compactmtl.train import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
RECIPE = Path(__file__).parents[1] / "train" / "together.yaml"
EPOCHS = 30
SECONDS = 150
NETWORK = "10.213.47"  # of the two alone: nothing of it leaves the host


@dataclass(frozen=True)
class Machine:
    """A network namespace with one link, to the other's."""

    space: str
    link: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.space, *words]


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    if not sys.platform.startswith("linux"):
        pytest.skip("two machines: network namespaces are Linux's")
    if os.getuid():
        pytest.skip("two machines: only root can make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("two machines: ip is not installed (Debian: iproute2)")
    mark = uuid.uuid4().hex[:6]  # names of links have 15 letters at most
    made = [Machine(f"cmtl-{mark}-{n}", f"cm{mark}{n}", f"{NETWORK}.{n + 1}") for n in range(2)]
    with ExitStack() as stack:
        for one in made:
            tried = subprocess.run(
                ["ip", "netns", "add", one.space], capture_output=True, text=True, check=False
            )
            if tried.returncode:
                pytest.skip(f"two machines: {tried.stderr.strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", one.space], check=False)
        first, second = made
        call(
            "ip", "link", "add", first.link, "netns", first.space, "type", "veth",
            "peer", "name", second.link, "netns", second.space,
        )  # fmt: skip
        for one in made:
            call("ip", "-n", one.space, "addr", "add", f"{one.address}/24", "dev", one.link)
            for link in (one.link, "lo"):
                call("ip", "-n", one.space, "link", "set", link, "up")
        yield made


def start(machine: Machine, first: Machine, folder: Path, *options: str) -> subprocess.Popen[str]:
    """torchrun on a machine, in a session of its own so that it can be killed whole."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:29400", "--rdzv-id", "one",
        "--rdzv-conf", f"is_host={int(machine is first)}", "--local-addr", machine.address,
    ]  # fmt: skip
    words = ["-m", "compactmtl", "train", str(RECIPE), f"train.epochs={EPOCHS}", "--out", str(folder)]
    environment = {"GLOO_SOCKET_IFNAME": machine.link, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        machine.command(*launcher, *words, "--name", "run", *options),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Everything that runs on a machine, at once: torchrun's processes have sessions of their own."""
    family, found = [process.pid], []
    while family:
        pid = family.pop()
        found.append(pid)
        try:
            family += [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            continue
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end(process: subprocess.Popen[str]) -> None:
    """What is left of a machine when the test ends."""
    if process.poll() is None:
        kill(process)
        process.communicate()


def epochs(folder: Path) -> list[int]:
    log = folder / "run" / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    events = [json.loads(line) for line in lines]
    return [event["epoch"] for event in events if event["event"] == "epoch"]


def test_a_machine_that_dies_ends_the_job_with_the_reason_and_both_go_on(
    machines: list[Machine], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        jobs = [start(one, machines[0], tmp_path) for one in machines]
        for job in jobs:
            stack.callback(end, job)
        deadline = time.monotonic() + SECONDS
        while len(epochs(tmp_path)) < 2 and time.monotonic() < deadline:
            for job in jobs:
                assert job.poll() is None, job.communicate()[1]
            time.sleep(0.1)
        before = epochs(tmp_path)
        assert before and max(before) < EPOCHS
        kill(jobs[1])
        _, said = jobs[0].communicate(timeout=SECONDS)
        assert jobs[0].returncode != 0
        assert "error: process " in said, said
        assert " of 2 stops: another one has ended or no longer answers" in said
        assert "--resume" in said
        jobs[1].communicate(timeout=SECONDS)
        again = [start(one, machines[0], tmp_path, "--resume") for one in machines]
        for job in again:
            stack.callback(end, job)
        told = [job.communicate(timeout=2 * SECONDS) for job in again]
        assert [job.returncode for job in again] == [0, 0], told
    assert epochs(tmp_path) == list(range(1, EPOCHS + 1))
    assert Run.open(tmp_path / "run").finished
