"""Runnable measurements."""
