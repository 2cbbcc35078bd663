"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """A mistake that a user can correct.

    Its message says in one line what was given, what is allowed and what to do. Commands print it without a traceback
    and exit with code 2. If torch passes the error on from a worker of a data loader, the traceback that it adds to the
    message is removed.
    """

    def __init__(self, message: str) -> None:
        if message.startswith('Caught UserError in '):
            message = message.rpartition('UserError: ')[2].strip()
        super().__init__(message)
