"""Stage ``quantize``, and the block files that it writes."""
