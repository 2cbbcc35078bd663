"""The one exception a user is meant to see."""


class UserError(ValueError):
    """A mistake the user can mend: says what was given, what is allowed and what to do, in one line.

    Tools print it without a traceback and exit with 2.
    """
