"""What a run of the engine takes, reports and returns. Imports no torch, so that every room can speak it."""
