"""Floor 5: the trainer. It owns the loop once; a method never learns that it is being trained."""
