"""What stands in the place of params: which parts there are, what is trained, what is updated."""
