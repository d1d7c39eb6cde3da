"""The input, the reports and the result of a run. No torch is imported, so every part of the service can use it."""
