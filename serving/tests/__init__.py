"""Tests in vLLM itself; ``make serving`` runs them, ``make test`` does not."""
