"""The commands of ``quantry``, with a module for each group."""
