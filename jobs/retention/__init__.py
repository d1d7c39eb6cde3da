"""Retention: deleting rows of finished jobs by setting, bytes without references, and abandoned downloads.

``housekeeping`` is one round of all, which workers make hourly and ``python -m jobs.gc`` makes by hand. ``expiry``
removes rows, ``collector`` bytes of the artifact store, and ``downloads`` unfinished downloads on this machine's disk.
"""
