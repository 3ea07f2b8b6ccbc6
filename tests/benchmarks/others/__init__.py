"""Tables of calls of other people's functions, for `tests.benchmarks.rules_of_others`."""
