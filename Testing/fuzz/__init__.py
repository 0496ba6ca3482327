"""Coverage-guided fuzzing of whatever reads what others wrote: `python -m fuzz --help` in the folder Testing."""
