"""Is a gradient right, at the given inputs and at others?"""
