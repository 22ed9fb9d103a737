"""Training: the state, the step, the optimizer, the loop, the journal and what it draws."""
