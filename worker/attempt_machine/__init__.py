"""What one attempt is, of a job as of a publication: a subprocess is followed, and one fenced write ends it."""
