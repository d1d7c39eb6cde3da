"""The Python client and the `quantry` command."""
