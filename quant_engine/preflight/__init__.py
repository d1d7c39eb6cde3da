"""The checks of a job that need no weights and no torch: by the API at submit, by the worker before a download."""

from quant_engine.preflight.check import JobInputs, check_job

__all__ = ["JobInputs", "check_job"]
