"""The backward pass of a model, taken away: as Python on JAX alone, and as mathematics."""
