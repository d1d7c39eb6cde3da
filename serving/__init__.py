"""What runs checkpoints in other engines: a plugin for vLLM, and the tests that run it."""
