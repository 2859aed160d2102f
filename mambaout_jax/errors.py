"""The base class of the errors that a user can fix, without dependencies, so that every package can import it."""


class UserError(ValueError):
    """An error that a user can fix, described in one sentence.

    The programs print the sentence without a traceback and exit with code 2. Each package has a subclass; a family or
    task of another package may derive its own.
    """


def is_user_error(error: Exception) -> bool:
    """Return whether an error is a user error or a missing device, which is printed without a traceback."""
    return isinstance(error, UserError) or str(error).startswith("Unable to initialize backend")
