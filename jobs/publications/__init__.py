"""Publications: pushing a job's checkpoint to the Hub, as a separate operation with its own queue, lease and fence."""
