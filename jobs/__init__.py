"""The life of a job: rows, transitions, leases, events and artifacts. It imports no HTTP, no Celery and no torch."""
