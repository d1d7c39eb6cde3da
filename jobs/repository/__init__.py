"""All SQL of the service. Functions take a session, flush or execute, and never commit: the caller does that."""
