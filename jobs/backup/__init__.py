"""Backup and restore: the jobs, files and key of a service in one directory.

The command is ``python -m jobs.backup make|restore DIR``. A backup contains

    backup.json      the description; it is written last, so a directory without it is no backup
    database.dump    pg_dump's custom format, of one snapshot
    artifacts/       every file of the snapshot's jobs, by content, in the layout of a local store
        secret.key       the key of stored credentials, unless QUANTRY_SECRET_KEY has it

The broker is not backed up: everything in it is also in the database.
"""
