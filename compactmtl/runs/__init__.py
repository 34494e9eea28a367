"""Runs on disk as models: what training wrote, read back. Nothing needs the training code to read a run."""

from compactmtl.artifacts.run_folder import is_run
from compactmtl.runs.compaction import compact_run
from compactmtl.runs.identity import recipe_hash
from compactmtl.runs.run import Run
from compactmtl.runs.subset import subset_run

__all__ = ["Run", "compact_run", "is_run", "recipe_hash", "subset_run"]
