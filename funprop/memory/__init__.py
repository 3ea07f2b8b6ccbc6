"""A budget for memory: what to keep, to run again and to move to the host."""
