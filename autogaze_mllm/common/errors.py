"""The error that means "the input is at fault": one line for people, exit code 2 on the command line."""


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what to do about it."""
