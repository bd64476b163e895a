"""The error that tells a user of a mistake. It has a module of its own so that the command line starts fast."""


class ConfigError(ValueError):
    """A mistake of the user's, told in one message; the CLI prints it and exits with code 2."""


class RankLost(RuntimeError):
    """Another process of the same run has ended; the CLI prints it and exits with code 1."""
