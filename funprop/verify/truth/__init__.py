"""What the gradient is: the forward pass alone, differentiated in float64 or by differences."""
