"""The one place that names the files and folders of runs, compact models, bundles, reports and sweeps.

    runs/<name>/ recipe.yaml · meta.json · data.json · log.jsonl · tensorboard/ · mlflow.json · checkpoints/{last,best}/
                 · compact/ · export/<target>/ · importance/ · probe.json · report.html · report.json · README.md · delta.md
                 · delta.tex

While a command writes into a run there is also .lock (see compactmtl.artifacts.lock).
"""

RECIPE = "recipe.yaml"
META = "meta.json"
SUBSET = "subset"  # key of meta.json: the tasks that are in, where some of another run's were taken
SUBSET_OF = "subset_of"  # key of meta.json: that run's name, and the hash of the weights
DATA = "data.json"  # what the data set held when training began
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow.json"  # which run of which MLflow store this is
CHECKPOINTS = "checkpoints"
BEST, LAST = "best", "last"
COMPACT = "compact"
EXPORT = "export"
IMPORTANCE, IMPORTANCE_FILE = "importance", "importance.json"  # what each channel is worth to each task
PROBE = "probe.json"  # what fresh predictors make of the frozen encoder

# of a checkpoint and of a compact model
WEIGHTS = "weights.safetensors"
STATE = "state.pt"  # of last
SUMMARY = "state.json"  # of best
PLAN = "plan.json"
SURGERY = "surgery.json"
SOURCE = "source.json"  # of compact models that were written without hashes.json

# of a bundle, export/<target>/
MODEL_FILE = "model.onnx"
BUNDLE_FILE = "bundle.json"
BUNDLE_SCHEMA = "bundle.schema.json"
INFER_SCRIPT = "infer.py"  # runs the bundle without compactmtl
GOLDEN_PICTURE, GOLDEN_ARRAYS = "golden.png", "golden.npz"  # a made picture, and what the model gives for it
GOLDEN_BANDS = "golden-bands.npy"  # the picture where it has other than 1, 3 or 4 channels
VERIFICATION_FILE = "verification.json"
DEVICES = "devices"  # folder of a bundle: what device kits of it found, and the kits' manifests
PREPARED_FILE = "prepared.json"  # of a target that is yet to be run on its own machine

# of a report
REPORT_PAGE = "report.html"
REPORT = "report.json"
CARD = "README.md"
TABLE_MARKDOWN, TABLE_LATEX = "delta.md", "delta.tex"
PREVIEW = "preview.png"

# of a sweep, of `profile` and of `predict`
SWEEP_TABLE, SWEEP = "sweep.md", "sweep.json"
SWEEP_LATENCY = "latency.json"  # of all its exports, measured side by side
SEARCH, SEARCH_TABLE, SEARCH_JOURNAL = "search.json", "search.md", "search.journal"
SEARCH_TRIALS, SEARCH_BEST = "trials", "best"  # folders of the trials' runs and of the best recipes
SEARCH_MARK = ".study"  # in the former: what tells it from any other
PROFILE = "profile.json"
PREDICTIONS = "predictions.json"

HASHES = "hashes.json"  # of any artifact, written last
LOCK = ".lock"
REPLACED = ".replaced"  # a run that --overwrite is about to delete
