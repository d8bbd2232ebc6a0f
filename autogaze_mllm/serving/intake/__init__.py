"""What clients send: read, checked and fetched, as far as it is allowed."""
