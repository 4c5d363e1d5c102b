"""Floor 6: recipes are functions that return a RunConfig; one file per method, with its source and what to expect."""
