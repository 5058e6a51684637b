"""One file per subject; each check is a function from a context to findings, listed in ``registry``."""
