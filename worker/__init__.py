"""Claims jobs, supervises the subprocess that runs them, sweeps up after crashes."""
