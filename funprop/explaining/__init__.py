"""One training step told in its four stages, on a model and a batch: as values, text and a page."""
