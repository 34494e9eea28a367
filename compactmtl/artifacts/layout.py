"""The names of a run's files and folders.

    runs/<name>/ recipe.yaml · meta.json · data.json · log.jsonl · tensorboard/ · checkpoints/{last,best}/ · compact/
                 · export/<target>/

While a command writes into a run there is also .lock (see compactmtl.artifacts.lock).
"""

RECIPE = "recipe.yaml"
META = "meta.json"
DATA = "data.json"  # what the data set held when training began
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
BEST, LAST = "best", "last"
COMPACT = "compact"
EXPORT = "export"

WEIGHTS = "weights.safetensors"
STATE = "state.pt"  # of last
SUMMARY = "state.json"  # of best
PLAN = "plan.json"
SURGERY = "surgery.json"
SOURCE = "source.json"  # of compact models that were written without hashes.json
HASHES = "hashes.json"
LOCK = ".lock"
REPLACED = ".replaced"  # a run that --overwrite is about to delete
