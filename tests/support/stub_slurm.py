"""A scheduler in place of SLURM's: it runs an sbatch script's array as processes, one a task, and requeues what asks for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_ARRAY = re.compile(r"^#SBATCH --array=(\d+)-(\d+)\b", re.MULTILINE)
_SRUN = '#!/bin/bash\necho $$ > "$STUB_FOLDER/step-$SLURM_ARRAY_TASK_ID"\nexec "$@"\n'
_SCONTROL = '#!/bin/bash\n[ "$1" = requeue ] && echo "$2" >> "$STUB_FOLDER/requeued"\n'


@dataclass
class StubSlurm:
    """The tasks of one array; `folder` holds the commands of SLURM that its script calls, and each task's output."""

    script: Path
    folder: Path
    cwd: Path
    tasks: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    codes: dict[int, list[int]] = field(default_factory=dict)

    def submit(self) -> None:
        """Start every task of the array."""
        found = _ARRAY.search(self.script.read_text())
        assert found is not None, "the script has no array"
        self.folder.mkdir()
        commands = {
            "srun": _SRUN,
            "scontrol": _SCONTROL,
            "compactmtl": f'#!/bin/bash\nexec "{sys.executable}" -m compactmtl "$@"\n',
        }
        for name, text in commands.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        for task in range(int(found[1]), int(found[2]) + 1):
            self._start(task)

    def _start(self, task: int) -> None:
        environment = os.environ | {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": str(task),
            "STUB_FOLDER": str(self.folder),
        }
        with (self.folder / f"77-{task}.txt").open("ab") as output:
            self.tasks[task] = subprocess.Popen(
                ["bash", str(self.script)],
                cwd=self.cwd,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self, task: int) -> str:
        """What a task has said."""
        return (self.folder / f"77-{task}.txt").read_text()

    def lose(self, task: int) -> None:
        """Kill all processes of a task at once, as the loss of its node does."""
        os.killpg(self.tasks[task].pid, signal.SIGKILL)

    def warn(self, task: int) -> None:
        """Send SIGTERM to a task's step, and not to its script, as `--signal=TERM@…` does before the time is up."""
        os.kill(int((self.folder / f"step-{task}").read_text()), signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait until every task has ended, and start those again that asked for it."""
        until = time.monotonic() + seconds
        while self.tasks:  # a task asks for its restart before it ends
            assert time.monotonic() < until, {task: self.output(task)[-2000:] for task in self.tasks}
            for task, process in list(self.tasks.items()):
                if process.poll() is not None:
                    del self.tasks[task]
                    self.codes.setdefault(task, []).append(process.returncode)
            for asked in self._requeued():
                self._start(int(asked.removeprefix("77_")))
            time.sleep(0.1)

    def _requeued(self) -> list[str]:
        """The tasks that asked to be started again, each told once."""
        path = self.folder / "requeued"
        if not path.exists():
            return []
        asked = path.read_text().split()
        path.unlink()
        return asked

    def close(self) -> None:
        """End what still runs."""
        for process in self.tasks.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
