"""`compactmtl probe`: fit fresh predictors on runs' frozen features."""

from __future__ import annotations

import argparse

from compactmtl.cli.parser import add_device, add_trust

HELP = "fit new predictors on the frozen features of runs, to measure how general the features are"
EXAMPLE = """\
compactmtl probe runs/utkface-small-bins
compactmtl probe runs/utkface-balancing/*/seed* --samples 5000 --json probes.json"""

LEAST = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders that `train` wrote")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the runs' data is on this machine, such as data.root=/data",
    )
    parser.add_argument(
        "--predictors",
        metavar="NAME",
        nargs="+",
        choices=("linear", "knn", "forest", "mlp"),
        default=["linear", "knn", "forest", "mlp"],
        help="predictors to fit: linear, knn, forest, mlp (default: all)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="training images to fit on (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of forests, networks and random heads (default: 0)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes for forest and knn (default: 1)")
    parser.add_argument("--again", action="store_true", help="probe again runs that already have results")
    parser.add_argument("--json", metavar="FILE", help="also write all results to this file")
    add_device(parser, "run the encoder and the random heads")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Probe each run; those that were are read from their probe.json."""
    import json
    import sys
    from pathlib import Path

    from compactmtl.artifacts.files import write_text
    from compactmtl.backends.torch.device import find_device
    from compactmtl.cli.disk import check_writable
    from compactmtl.errors import ConfigError
    from compactmtl.report import plain
    from compactmtl.report.probes import group_name, probe_tables
    from compactmtl.runs import Run
    from compactmtl.runs.probe import Probe, Question, to_json
    from compactmtl.train.probe import probe_run

    device = find_device(args.device, "--device")
    if args.samples is not None and args.samples < LEAST:
        raise ConfigError(
            f"--samples {args.samples}: expected {LEAST} or more", "leave it out to use all images"
        )
    if not 0 <= args.seed < 2**32:  # what scikit-learn takes
        raise ConfigError(f"--seed {args.seed}: expected a number of 0 to {2**32 - 1}", "leave it out for 0")
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected a positive number", "leave it out for 1")
    if args.json:
        check_writable(Path(args.json).absolute().parent)
    opened = [Run.open(path, args.overrides) for path in args.runs]
    question = Question(tuple(args.predictors), args.samples, args.seed)
    probes: dict[str, Probe] = {}
    groups: dict[str, list[Probe]] = {}
    for one in opened:
        print(f"{one.path} …", file=sys.stderr, flush=True)
        probe = probe_run(one, question, jobs=args.jobs, again=args.again, device=device)
        probes[str(one.path)] = probe
        groups.setdefault(group_name(one.path), []).append(probe)
    print("\n\n".join(plain(table) for table in probe_tables(groups)))
    for name, reason in next(iter(probes.values())).skipped.items():
        print(f"not probed: {name} ({reason})")
    if args.json:
        values = {path: to_json(probe) for path, probe in probes.items()}
        Path(args.json).absolute().parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(args.json), json.dumps(values, indent=2) + "\n")
    return 0
