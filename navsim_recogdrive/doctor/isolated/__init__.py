"""Steps that need other packages, run in one process of their own: what crashes there is a finding here.

``runner`` belongs to the doctor's process and imports the standard library alone; the other modules run in the other.
"""
