"""The one exception for problems that the user can cure."""

from __future__ import annotations


class UserError(Exception):
    """A problem with the user's files, flags or configuration.

    Its message names the file, field or flag and says what to do; the command line prints it
    without a stack trace and ends with `exit_code`.
    """

    exit_code = 1
