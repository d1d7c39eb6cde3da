"""Webhooks: sending events to a tenant's own servers, with endpoints, signed messages in an outbox, and deliveries."""
