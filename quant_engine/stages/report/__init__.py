"""The results that a run writes at its end: summary, report, and the facts of the model card."""
