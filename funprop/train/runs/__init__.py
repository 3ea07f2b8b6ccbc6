"""The runs of the command: their folders, what trains in them, and what is told of them."""
