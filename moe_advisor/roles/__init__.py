"""What every GPU activity is for: the taxonomy of names and the evidence that decides."""
