"""Floor 4: one file per method; `catalog` is the table."""
