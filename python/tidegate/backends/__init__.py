"""Ready-made backends, each imported by its own name, so that nobody pays for a client that they do not use."""
