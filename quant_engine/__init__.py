"""Quantry's quantization engine: it turns a model into a verified checkpoint, without HTTP, queue or database."""
