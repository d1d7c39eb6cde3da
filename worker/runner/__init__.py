"""The subprocess that computes."""
