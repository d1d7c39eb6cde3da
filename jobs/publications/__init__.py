"""Pushing a job's checkpoint to the Hub: an operation of its own, queued, leased and fenced like a job."""
