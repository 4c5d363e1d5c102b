"""Floor 3: the encoder contract and what fulfils it."""
