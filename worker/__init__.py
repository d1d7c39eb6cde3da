"""The worker: it claims jobs, supervises the subprocesses that run them, and repairs the state after crashes."""
