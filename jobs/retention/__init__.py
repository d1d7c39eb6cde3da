"""What goes when: rows of finished jobs by setting, their bytes by reference, downloads that nobody went on with.

``housekeeping`` is what workers do hourly and ``python -m jobs.gc`` by hand; ``expiry`` removes rows, ``collector``
bytes of the artifact store, ``downloads`` what lies on this machine's disk.
"""
