"""What a model is made of and what passes through it, to be looked at."""
