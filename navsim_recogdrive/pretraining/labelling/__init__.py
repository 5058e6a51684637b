"""Questions about logged scenes, answered, refined and judged by a VLM behind an OpenAI-compatible server.

Scenes (:mod:`~navsim_recogdrive.pretraining.records`) and editable templates give the questions and what the
annotations know; a server gives the answers in three steps (generation, refinement, quality control); the answers that
a judge passes become samples in InternVL's format.
``python -m navsim_recogdrive.pretraining.labelling`` is the command line.
"""
