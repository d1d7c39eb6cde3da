"""Sending webhook messages: the name is resolved, every address is checked, and a checked one is used."""
