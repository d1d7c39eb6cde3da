"""The fault harness: real processes, seeded faults, and a log that says whether the promises were kept.

``servers`` and ``proxy`` are what the service leans on, ``fleet`` the service itself, ``catalogue`` and ``runner`` its
jobs, ``failpoints`` and ``injuries`` what happens to it; ``witness`` writes the log, ``checker`` judges it, ``chaos``
runs it all.
"""
