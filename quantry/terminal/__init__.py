"""What a person sees on a terminal: tables of results, and a job's progress."""
