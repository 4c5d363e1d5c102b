"""Floor 2: pure operations on tensors: patches, masks, positions, ranks, neighbours."""
