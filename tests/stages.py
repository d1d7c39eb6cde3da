"""The stages of a job that needs all of them, in order, by their names in the HTTP API."""

STAGES = (
    "resolve", "load", "calibrate", "search", "train", "select", "quantize", "tune", "evaluate", "gguf_source",
    "export", "verify", "publish",
)  # fmt: skip
