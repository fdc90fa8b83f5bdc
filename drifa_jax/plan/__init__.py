"""From data as they lie to a configuration: what is there, and what follows from it."""
