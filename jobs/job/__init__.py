"""Jobs: their states and rows, claims and leases, sweeps, and the operations of the API."""
