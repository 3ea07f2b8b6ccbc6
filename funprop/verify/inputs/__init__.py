"""Inputs made from the given ones: those that people forget."""
