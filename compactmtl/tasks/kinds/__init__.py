"""The kinds of task, one file each: a kind is found by its file's name, and only the file that is asked for is read."""
