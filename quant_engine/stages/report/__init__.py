"""What a run says of itself at its end: its summary and report, and its model card."""
