"""Output on a terminal: tables of results, and the progress of a job."""
