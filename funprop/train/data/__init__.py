"""Where batches come from: arrays in memory, sources of records, functions, files of tokens."""
