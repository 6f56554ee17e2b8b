"""What a report cannot do."""


class ReportError(RuntimeError):
    """A report cannot be made: a package is missing, or the store holds nothing to show."""
