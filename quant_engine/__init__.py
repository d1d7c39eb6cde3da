"""Quantry's quantization engine: tensors in, a verified checkpoint out. Knows no HTTP, no queue and no database."""
