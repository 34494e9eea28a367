"""Training: one loop over an ordered list of parts, its checkpoints and the run that it leaves."""

from compactmtl.runs import Run, compact_run, is_run, recipe_hash
from compactmtl.train.dry_run import DryRun, check_recipe, dry_run, expected_cost, measured_table
from compactmtl.train.interrupt import GivenUp, TrainingInterrupted
from compactmtl.train.loop import train

__all__ = [
    "DryRun",
    "GivenUp",
    "Run",
    "TrainingInterrupted",
    "check_recipe",
    "compact_run",
    "dry_run",
    "expected_cost",
    "is_run",
    "measured_table",
    "recipe_hash",
    "train",
]
