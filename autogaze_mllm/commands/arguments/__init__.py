"""What the verbs share of the command line: options that become settings, and files that fill them."""
