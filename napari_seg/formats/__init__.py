"""Files to volumes and segmentations, and back: one module per format."""
