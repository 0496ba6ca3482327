"""Evaluation: comparing results with the truth, the paper's table, speed and memory."""
