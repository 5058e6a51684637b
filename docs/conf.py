"""Sphinx settings of the documentation (extra ``[docs]``): ``python -m sphinx -W -b html docs outputs/docs``."""

project = "navsim-recogdrive"
author = "the navsim-recogdrive contributors"
copyright = "the navsim-recogdrive contributors, Apache-2.0"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["tools"]

# Pages are written for GitHub and for Sphinx alike: plain Markdown, anchors as GitHub makes them.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = "navsim-recogdrive"
html_show_sourcelink = False
html_copy_source = False
