"""Models out of the lab: predictions on any image, and exported files."""
