"""Publications on the Hub: the thread that claims them, and the subprocess that uploads a checkpoint."""
