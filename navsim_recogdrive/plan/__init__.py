"""``python -m navsim_recogdrive.plan``: one plan, from an image or for a scene of NAVSIM, without a runner.

:mod:`.command` is the command line, :mod:`.situation` what is planned for, :mod:`.planning` with what, :mod:`.output`
what comes out. NAVSIM is loaded only where a scene of its data is asked for.
"""
