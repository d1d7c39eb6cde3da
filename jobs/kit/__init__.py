"""The basic types of this package: ids, errors, states, cursors, leases and view types."""
