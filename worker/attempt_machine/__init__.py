"""An attempt of a job or a publication: it follows a subprocess, and one fenced write ends it."""
