"""Subprocesses: how they start, what they may see, and the messages that they send back."""
