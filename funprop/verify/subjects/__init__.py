"""What can be judged, each made into a `Subject`: a layer, a function, a gradient, a rule."""
