"""Errors that a person can act on.

Invariant: whatever reaches the command line as a `MuaError` is one paragraph that names the cause
and the fix; a traceback there is a bug in mua.
"""


class MuaError(Exception):
    """Something the person at the keyboard can mend; its text is shown as it is, without a traceback."""


class InfrastructureError(MuaError):
    """A part outside the conversation failed (user endpoint, tool server, engine).

    Episodes that meet one are retried, then left out of the batch; they never get a reward.
    """
