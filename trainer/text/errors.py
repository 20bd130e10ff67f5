"""Errors that the user can cause. Everything else is a bug and ends with a traceback."""
import errno


class TextError(Exception):
    """The message says what was wrong, where (file, line or row, key) and what was wanted; exit_code is that of
    `bitshard` for this kind (core/error.h)."""
    exit_code = 1


class ConfigError(TextError):
    """A setting that can't be met."""
    exit_code = 2


class DataError(TextError):
    """A file that is missing, damaged or of the wrong form."""
    exit_code = 3


class StorageError(TextError):
    """A write that failed."""
    exit_code = 6


FULL = "; free space or write elsewhere"
HINTS = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: "; raise the file size limit (ulimit -f)"}


def storage_error(path: str, error: OSError) -> StorageError:
    """For a file that could not be written: what the system says, and what to do about it."""
    return StorageError(f"{escaped(path, 4096)}: {error.strerror}{HINTS.get(error.errno, '')}")


def escaped(text: object, limit: int = 200) -> str:
    """For names and values that come from files: one line, nothing that a terminal acts on."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text))
    return shown if len(shown) <= limit else shown[:limit] + "..."
