"""Stage 1: driving pretraining of the VLM, from logs to question-answer data to weights."""
