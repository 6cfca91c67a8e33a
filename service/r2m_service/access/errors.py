"""Why access as it was set up cannot be used."""


class AccessError(ValueError):
    """One sentence that names the setting or file, and the way out."""
