"""The subprocess that fetches models and data sets from the Hub."""
