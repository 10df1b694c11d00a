"""The command line. One file per command; what it says to a person who made a mistake is a `Problem`."""


class Problem(Exception):  # noqa: N818
    """Ends a command with one sentence that says what to do, and exit status 1."""
