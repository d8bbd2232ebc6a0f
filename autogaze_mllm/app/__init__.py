"""What is looked at in a browser: the page, and the static report of one video."""
