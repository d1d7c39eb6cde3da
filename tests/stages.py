"""The stages of a job that needs all of them, in order: the words of the HTTP contract."""

STAGES = (
    "resolve", "load", "calibrate", "search", "train", "select", "quantize", "evaluate", "export", "verify", "publish",
)  # fmt: skip
