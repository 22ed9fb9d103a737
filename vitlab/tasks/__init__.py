"""What is learned. A task wires a model to its loss, augmentation, metrics and pictures."""
