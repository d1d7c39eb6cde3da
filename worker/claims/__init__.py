"""Holding a claim: its heartbeat and fenced writes, and the lock that shows its process alive."""
