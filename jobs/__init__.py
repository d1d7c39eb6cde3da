"""The life of a job: rows, transitions, leases, events and artifacts. Knows no HTTP, no Celery and no torch."""
