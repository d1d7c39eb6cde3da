"""Pushing a checkpoint to the Hub: the thread that claims publications, and the subprocess that uploads."""
