"""A run's methods leave the workflow: a format a file, and the card that lies beside each."""
