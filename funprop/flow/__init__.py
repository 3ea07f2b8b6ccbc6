"""How activations, cotangents and updates are spread, by layer, over training."""
