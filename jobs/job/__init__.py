"""A job: its states and rows, claims and leases, sweeps, and the use cases of the API."""
