"""A job: what its ranks run, and the places that it can run in."""
