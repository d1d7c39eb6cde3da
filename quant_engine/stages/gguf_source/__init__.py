"""Stage ``gguf_source``: the fused float16 model and its importance matrix, for llama.cpp."""
