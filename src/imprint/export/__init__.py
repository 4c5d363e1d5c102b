"""Floor 5: write a backbone for another library, load it back there, and compare numbers."""
