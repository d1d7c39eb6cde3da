"""What the stages of one run share: the run, the settings of its sites, its text, its statistics."""
