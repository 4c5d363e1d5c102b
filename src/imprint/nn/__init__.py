"""Floor 3: parts with state that methods are composed of."""
