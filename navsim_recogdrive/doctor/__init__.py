"""Checks an installation, its data and its machine: ``python -m navsim_recogdrive.doctor``.

What is wrong may be any package, so this process imports the standard library alone. All that needs other packages runs
in a process of its own (:mod:`navsim_recogdrive.doctor.isolated`), whose crash or hang is a finding like any other.
"""
