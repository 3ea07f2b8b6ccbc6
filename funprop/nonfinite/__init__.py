"""Where a loss or a gradient first ceases to be finite: layer by layer, equation by equation."""
