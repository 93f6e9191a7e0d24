"""From raw corpora to labelled text (create_dataset.py) and on to labelled activations (act_dataset.py)."""
