"""What is copied into bundles: infer.py with its parts, and the schema of bundle.json. Nothing here imports compactmtl."""
