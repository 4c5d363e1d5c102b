"""Floor 0: errors, progress, schedules and counter-based randomness. Imports neither torch nor anything above."""
