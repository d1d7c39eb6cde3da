"""The subprocess that fetches a model from the Hub."""
