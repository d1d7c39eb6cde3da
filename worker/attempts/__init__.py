"""One attempt of one job, from its claim to the write that ends it."""
