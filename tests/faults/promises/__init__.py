"""The promises that need the whole service: each test does its worst to a running fleet, and the checker judges it."""
