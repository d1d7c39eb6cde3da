"""Telling a tenant's own servers of events: endpoints, an outbox of signed messages, their deliveries."""
