"""Algorithms that a person steers: each takes a label map, its grid and a hint, and returns a `Change`. Without Qt."""
