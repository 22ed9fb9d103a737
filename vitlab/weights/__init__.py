"""Parameters from elsewhere: other runs' checkpoints."""
