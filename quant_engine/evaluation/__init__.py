"""What quantization costs: layer errors, perplexity, and the report that puts them side by side."""
