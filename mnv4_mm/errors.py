"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """A mistake that a user can correct.

    Its message says in one line what was given, what is allowed and what to do. Commands print it without a traceback
    and exit with code 2.
    """
