"""The loop of correction and training: accepted cases, which case next, and the improved model."""
