"""The fault harness: real processes, seeded faults, and a log from which the promises are checked.

``servers`` and ``proxy`` are the servers that the service needs, ``fleet`` is the service itself, ``catalog`` and
``runner`` are its jobs, ``failpoints`` and ``injuries`` are the faults. ``witness`` writes the log, ``checker`` judges
it, and ``chaos`` runs all of it.
"""
