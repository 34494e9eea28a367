"""What `tools/fuzz.py` feeds with damaged files: readers of files that come from elsewhere."""
