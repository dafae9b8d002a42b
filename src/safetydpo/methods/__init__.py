"""What can render: a kind of method a file."""
