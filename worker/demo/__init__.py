"""The model of the demo, and text that is generated from a checkpoint."""
