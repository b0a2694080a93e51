"""Errors that a user can mend; the command line prints them as one line and exits with status 2. And warnings."""


class SptraceError(Exception):
    """Something the user can put right. The message is one line: what is wrong, and what to do."""


class UnsupportedError(SptraceError):
    """The network contains something that sptrace has no rule for."""


class VerificationError(SptraceError):
    """The emitted program disagrees with its reference; nothing has been saved."""


class SptraceWarning(UserWarning):
    """What was asked for is done, but the user should know this about it; the command line prints it as one line."""
