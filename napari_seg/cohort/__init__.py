"""Many scans in, many segmentations out; one bad scan never costs another."""
