"""Errors that a person can act on.

Invariant: whatever reaches the command line as a `MuaError` is one paragraph that names the cause
and the fix; a traceback there is a bug in mua.
"""


class MuaError(Exception):
    """Something the person at the keyboard can mend; its text is shown as it is, without a traceback."""


def unreadable(exc: Exception) -> str:
    """Why a text file cannot be read, in words for a `MuaError`, without the path that `OSError` repeats."""
    if isinstance(exc, UnicodeDecodeError):
        if exc.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "it is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
        return f"it is not UTF-8 text (byte {exc.start})"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return " ".join(str(exc).split())


class InfrastructureError(MuaError):
    """A part outside the conversation failed (user endpoint, tool server, engine).

    Episodes that meet one are retried, then left out of the batch; they never get a reward.
    """
