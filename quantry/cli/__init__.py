"""The commands of ``quantry``, a module for each group."""
