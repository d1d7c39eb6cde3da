"""The sweeper process, which repairs what dead workers left, and the thread that restarts it."""
