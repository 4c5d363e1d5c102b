"""Floor 5: evaluation protocols. All judge an Encoder on Sources and return a Report; none knows how it was trained."""
