"""Measure what quantization costs: layer errors, perplexity, and the report that shows both."""
