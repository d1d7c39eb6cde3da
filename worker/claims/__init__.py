"""A claim that is held: its heartbeat and fenced writes, and the lock that shows that its process is alive."""
