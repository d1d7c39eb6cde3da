"""Sending webhook messages: a name is resolved, every address checked, and the connection made to one that was."""
