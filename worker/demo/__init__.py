"""The demo's model, and text generated from a checkpoint."""
