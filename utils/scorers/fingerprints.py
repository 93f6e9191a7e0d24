"""What decides the scores of a classifier: what was fitted, or the files of a model."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from utils.atomic import sha256_file, sha256_json

_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


def fitted_fingerprint(pipeline: Any) -> str:
    """Return a hash of all that scikit-learn has fitted; the same for the same data, unlike that of its file."""
    digest = hashlib.sha256()
    for _, step in pipeline.steps:
        for name, value in sorted(vars(step).items()):
            if isinstance(value, dict):
                digest.update(sha256_json({str(key): int(place) for key, place in value.items()}).encode())
            elif isinstance(value, np.ndarray | float | int):
                digest.update(name.encode() + np.asarray(value).tobytes())
            elif name == "_tfidf":
                digest.update(value.idf_.tobytes())
    return digest.hexdigest()


def model_fingerprint(folder: str, model: Any) -> str:
    """Return a hash of a model's weights, configuration and tokenizer; of one from the hub its name and commit."""
    path = Path(folder)
    if not path.is_dir():
        return f"{folder} {getattr(model.config, '_commit_hash', None)}"
    files = sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS)
    return sha256_json({file.name: sha256_file(file) for file in files})
