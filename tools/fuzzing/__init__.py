"""What `tools/fuzz.py` feeds with damaged files: every reader of a file that comes from elsewhere."""
