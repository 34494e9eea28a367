"""Feed the readers of files that come from elsewhere with damaged ones, guided by coverage (atheris).

    pip install 'atheris>=3'
    python -m tools.fuzz recipe plan coco --seconds 1200 --out runs/fuzz

Every reader named (all by default, `--list` says which there are) gets `--seconds` in a process of its own, with `--memory` GB at
most. It begins with whole files and what former runs kept in `--out`. A reader may return or refuse with one of our own errors;
any other exception, more than `--hang` seconds for one file, or a crash is a find: the file is kept in `--out`, and the exit code
is 1. `python -m tools.fuzz plan --replay FILE` reads one again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from compactmtl.errors import MISSING
from tools.fuzzing.readers import READERS, feed

MAX_BYTES = 16_384


def corpus_of(name: str, out: Path) -> Path:
    """The folder of a reader's files, with the whole ones in it."""
    folder = out / name / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in READERS[name].seeds():
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    return folder


def fuzz(name: str, given: argparse.Namespace) -> int:
    """Run atheris on a reader in a process of its own, its output in a log; libFuzzer's exit code."""
    corpus = corpus_of(name, given.out)
    flags = [
        f"-max_total_time={given.seconds}",
        f"-max_len={MAX_BYTES}",
        f"-timeout={given.hang}",
        f"-artifact_prefix={corpus.parent}/",
        "-print_final_stats=1",
        "-rss_limit_mb=0",  # the limit is the process's own
    ]
    limit = given.memory << 30
    with (
        (corpus.parent / "log").open("w") as stream,
        tempfile.TemporaryDirectory(
            prefix="compactmtl-fuzz-"
        ) as folder,  # libFuzzer leaves its process without a farewell
    ):
        return subprocess.run(
            [sys.executable, "-m", "tools.fuzzing.child", name, str(corpus), *flags],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": folder},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        ).returncode


def replay(name: str, file: Path) -> int:
    """Read one file as a run would; the exit code."""
    with tempfile.TemporaryDirectory(prefix="compactmtl-fuzz-") as folder:
        taken = feed(READERS[name], file.read_bytes(), Path(folder))
    print(f"{file}: {'taken' if taken else 'refused'}")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER", help="by default all")
    parser.add_argument("--list", action="store_true", help="name the readers")
    parser.add_argument("--seconds", type=int, default=1200, help="for each reader")
    parser.add_argument("--hang", type=int, default=20, help="seconds that one file may take")
    parser.add_argument("--memory", type=int, default=8, help="GB that a reader's process may address")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="read this file once, and say what became of it"
    )
    given = parser.parse_args()
    names = given.readers or list(READERS)
    if unknown := set(names) - set(READERS):
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    if given.list:
        print("\n".join(READERS))
        return 0
    if given.replay is not None:
        if len(given.readers) != 1:
            parser.error("--replay takes one reader")
        if not given.replay.is_file():
            parser.error(f"--replay {given.replay}: there is no such file")
        return replay(given.readers[0], given.replay)
    if min(given.seconds, given.hang, given.memory) < 1:  # libFuzzer takes 0 for no limit
        parser.error("--seconds, --hang and --memory are at least 1")
    if importlib.util.find_spec("atheris") is None:
        print("error: atheris is not installed\n  pip install 'compactmtl[fuzz]'", file=sys.stderr)
        return MISSING
    found = 0
    for name in names:
        code = fuzz(name, given)
        found += code != 0
        print(
            f"{name}: {'nothing found' if code == 0 else f'a find, exit code {code}'}; {given.out / name}",
            flush=True,
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
