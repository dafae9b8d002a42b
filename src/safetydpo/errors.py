"""The project's own errors: one sentence that says what is wrong, where, and what to do."""


class SafetyDPOError(Exception):
    """A user can mend this: the message is all they need, no traceback is shown."""
