"""Latencies of a sweep's exports, measured side by side: all entries and targets of one seed in the same rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import EXPORT, SWEEP_LATENCY
from compactmtl.artifacts.told import now
from compactmtl.backends.batching import fixed_batch
from compactmtl.backends.noise import noise_for
from compactmtl.config import SweepConfig
from compactmtl.config.schema import Frozen
from compactmtl.errors import CompactError
from compactmtl.export import Bundle
from compactmtl.report.deployed import deployed_name
from compactmtl.runs import Run
from compactmtl.sweep.run import SweepRuns, current_bundle
from compactmtl.verify.latency import Fed, measure_latency
from compactmtl.verify.result import LatencyResult


class SeedLatency(Frozen):
    """The latencies of one seed's exports, and the hash of each bundle that they are of."""

    bundles: dict[str, str]
    latency: LatencyResult
    created: str


class SweepLatency(Frozen):
    """latency.json of a sweep: by seed."""

    version: Literal[1] = 1
    seeds: dict[int, SeedLatency]


def sweep_latencies(
    sweep: SweepConfig,
    runs: SweepRuns,
    out: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    measure: bool = True,
) -> dict[int, SeedLatency]:
    """The latencies of all exports by seed, as `out`/latency.json has them; measured where it lacks one or has another's.

    All exports of a seed are measured together, in rounds that clock each of them once, so that they compare. A seed is
    measured anew when one of its bundles is new. With `measure` False seeds are left out whose bundles have changed. What
    cannot be opened on this machine is said, and left out. Raises OSError where `out` can't be written.
    """
    known, found = _read(out / SWEEP_LATENCY), {}
    seeds = sorted({run.recipe.seed for group in runs.finished.values() for run in group})
    for seed in seeds:
        bundles = _bundles(sweep, runs, seed)
        hashes = {name: bundle.sha256 for name, bundle in bundles.items()}
        before = known.get(seed)
        if not bundles:
            continue
        if before is not None and before.bundles == hashes:
            found[seed] = before
        elif measure:
            say(f"latency of {len(bundles)} exports of seed {seed}, side by side")
            latency = _measured(bundles, say)
            if latency is not None:
                found[seed] = SeedLatency(bundles=hashes, latency=latency, created=now())
    both = {**known, **found}  # seeds that were not asked for stay
    if both != known:
        write_text(out / SWEEP_LATENCY, SweepLatency(seeds=both).model_dump_json(indent=1) + "\n")
    return found


def _read(path: Path) -> dict[int, SeedLatency]:
    """What was measured before; nothing where the file is damaged or of another version: it is measured again."""
    try:
        return dict(SweepLatency.model_validate_json(path.read_text(encoding="utf-8")).seeds)
    except (OSError, ValidationError, json.JSONDecodeError):
        return {}


def _bundles(sweep: SweepConfig, runs: SweepRuns, seed: int) -> dict[str, Bundle]:
    """The seed's bundles of the models that the runs hold now, the baseline's first."""
    entries = sorted(runs.finished, key=lambda entry: entry != sweep.baseline)
    bundles = {}
    for target in sweep.targets:
        for entry in entries:
            run = _of_seed(runs.finished[entry], seed)
            bundle = None if run is None else current_bundle(run, run.path / EXPORT / target)
            if bundle is not None:
                bundles[deployed_name(entry, target)] = bundle
    return bundles


def _of_seed(group: Sequence[Run], seed: int) -> Run | None:
    return next((run for run in group if run.recipe.seed == seed), None)


def _measured(bundles: dict[str, Bundle], say: Callable[[str], None]) -> LatencyResult | None:
    with ExitStack() as stack:
        fed: dict[str, Fed] = {}
        for name, bundle in bundles.items():
            try:
                runner = stack.enter_context(bundle.runner())
                batch = fixed_batch(runner) or bundle.info.target.latency.batch
                fed[name] = Fed(runner, noise_for(runner.inputs, batch))
            except CompactError as error:
                say(f"{name} is not timed: {error.message}")
        if not fed:
            return None
        settings = [bundles[name].info.target.latency for name in fed]
        return measure_latency(
            fed,
            warmup=max(one.warmup for one in settings),
            repeats=max(one.repeats for one in settings),
            settle=max(one.settle for one in settings),
        )
