"""What looks at images: a judge a file."""
