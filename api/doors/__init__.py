"""What is checked on every request before anything reads it: its size, its host name and its origin."""
