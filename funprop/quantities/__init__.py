"""What a backward pass knows beside the gradient: of each example, its norm, its part."""
