"""The errors a user can meet, each with the exit code it ends the program with."""


class MoeAdvisorError(Exception):
    """A problem the user can fix: one line that says what, where and what to do.

    The command line prints the message on stderr without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class InputError(MoeAdvisorError):
    """A trace or an earlier result that can't be read."""


class ConfigError(MoeAdvisorError):
    """A run configuration, training log, budget file or option that can't be used."""


class RuleError(MoeAdvisorError):
    """A rule file that breaks the rule format; the message names file, line and field."""


class OutputError(MoeAdvisorError):
    """An output that can't be written, or must not be overwritten."""


class GateFailed(MoeAdvisorError):
    """A gate or budget that was asked for is not met, or could not be measured."""

    exit_code = 1
