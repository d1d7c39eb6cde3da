"""A service's jobs, files and key in one directory, and a service made of that directory again.

``python -m jobs.backup make|restore DIR``. A backup holds

    backup.json      what it is of; written last, so that a directory without it is no backup
    database.dump    pg_dump's custom format, of one snapshot
    artifacts/       every file that the snapshot's jobs have, by content, as a local store has them
    secret.key       of stored credentials, unless QUANTRY_SECRET_KEY holds the key

The broker has nothing that the database does not have.
"""
