"""What `vitlab VERB` does, a file for each verb."""
