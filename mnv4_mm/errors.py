"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """A mistake that a user can correct.

    Its message says in one line what was given, what is allowed and what to do. Commands print it without a traceback
    and exit with code 2. The traceback that torch adds to the message of a data loader's worker is left out.
    """

    def __init__(self, message: str) -> None:
        if message.startswith('Caught UserError in '):
            message = message.rpartition('UserError: ')[2].strip()
        super().__init__(message)
