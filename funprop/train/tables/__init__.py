"""Tables: read, their columns and targets found, divided, and made into numbers."""
