"""What every concept of this room is built from: ids, errors, states, cursors, leases and view types."""
