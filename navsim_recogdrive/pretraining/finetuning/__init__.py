"""Supervised fine-tuning of InternVL on question-answer data, on the Hugging Face Trainer."""
