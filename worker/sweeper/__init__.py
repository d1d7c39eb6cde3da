"""The process that repairs what dead workers left, and the thread that keeps that process running."""
