"""Floor 3: sources, views, loading. A view of sample i in epoch e is a pure function of (seed, e, i, view)."""
