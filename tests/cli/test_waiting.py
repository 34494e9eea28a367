"""How idle threads wait: the command line says so before torch loads, and only where the user has not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from compactmtl.cli.main import WAITING, main, wait_passively

CODE = """
import os, sys
from compactmtl.cli.main import main
main(["--version"])
print(*(f"{name}={os.environ[name]}" for name in sys.argv[1:] if name in os.environ))
"""


def environment_of_the_command(**given: str) -> str:
    plain = {key: value for key, value in os.environ.items() if key not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *WAITING],
        capture_output=True,
        text=True,
        check=True,
        env={**plain, **given},
    )
    return done.stdout.splitlines()[-1]


def test_the_command_lets_idle_threads_sleep() -> None:
    assert environment_of_the_command() == "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 KMP_BLOCKTIME=0"


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_set_stays_alone(name: str) -> None:
    assert wait_passively({name: "7"}) == {}
    assert environment_of_the_command(**{name: "7"}) == f"{name}=7"


def test_a_program_that_has_loaded_torch_keeps_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401  (this is what is tested)

    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    main(["--version"])
    assert not set(WAITING) & set(os.environ)
