"""The runner: the subprocess that computes."""
