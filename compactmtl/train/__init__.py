"""Training: one loop, its checkpoints and the run folder that every later stop reads."""

from compactmtl.artifacts.run_folder import is_run
from compactmtl.train.compaction import compact_run
from compactmtl.train.dry_run import DryRun, dry_run
from compactmtl.train.interrupt import TrainingInterrupted
from compactmtl.train.loop import train
from compactmtl.train.run import Run, recipe_hash

__all__ = ["DryRun", "Run", "TrainingInterrupted", "compact_run", "dry_run", "is_run", "recipe_hash", "train"]
