"""Floor 1: processes that train together. Everything here is the identity when a process is alone."""
