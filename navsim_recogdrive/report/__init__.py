"""Evaluation report: what NAVSIM's score CSVs say, with intervals, comparisons and the scenes behind the numbers.

``python -m navsim_recogdrive.report RUN [RUN ...]`` writes one HTML page that needs nothing but itself. The room stands
alone: numpy, and the names of the driving commands.
"""
