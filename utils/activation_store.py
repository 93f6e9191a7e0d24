"""Labelled activations on disk: one row per token, as Arrow files that `datasets.load_from_disk` opens.

Shards are written from contiguous buffers straight into Arrow and read back zero-copy from memory-mapped files.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import DatasetInfo, Features, List, Value
from numpy.typing import NDArray

from utils.atomic import atomic_file, write_json
from utils.errors import UserError, first_line

FORMAT = 1
DTYPES = ("float16", "float32")
SPLIT_FILES = ("dataset_info.json", "state.json")  # what `datasets` keeps beside the shards of a split


def cache_name(model: str, dataset: str, block: int, site: str) -> str:
    """Return the folder name of a cache, such as `smollm2-SP-B15-block`."""
    return f"{model}-{dataset}-B{block:02}-{site}"


@dataclass(frozen=True)
class TokenRows:
    """The columns of B tokens: D values of the activation, C labels, and where each token comes from."""

    acts: NDArray[np.floating]  # [B, D], float16 or float32
    label: NDArray[np.int8]  # [B, C]
    input_ids: NDArray[np.int32]  # [B]
    text_id: NDArray[np.int32]  # [B]
    position: NDArray[np.int32]  # [B], counted from the text's first token, special tokens included

    def __len__(self) -> int:
        return len(self.acts)


def row_features(d_model: int, n_concepts: int, dtype: str) -> Features:
    """Return the columns' types."""
    return Features(
        {
            "acts": List(Value(dtype), length=d_model),
            "label": List(Value("int8"), length=n_concepts),
            "input_ids": Value("int32"),
            "text_id": Value("int32"),
            "position": Value("int32"),
        }
    )


def shard_name(shard: int, n_shards: int) -> str:
    """Return the file name that `datasets` gives a shard."""
    return f"data-{shard:05}-of-{n_shards:05}.arrow"


def write_shard(path: Path, rows: TokenRows, features: Features) -> None:
    """Write one shard atomically, as a single record batch, without copying the activations."""
    schema = features.arrow_schema
    arrays = [_to_arrow(getattr(rows, field.name), schema.field(field.name).type) for field in fields(rows)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    with (
        atomic_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        writer.write_batch(batch)


def read_shard(path: Path, features: Features) -> TokenRows:
    """Map one shard into memory; its arrays are read-only views of the file.

    Raises:
        UserError: a truncated or foreign file.
    """
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); the same act_dataset.py command with --repair mends it"
        ) from None
    if table.schema.types != features.arrow_schema.types or any(column.num_chunks > 1 for column in table.columns):
        raise UserError(f"{path}: its columns are not those of its manifest; act_dataset.py with --repair mends it")
    return TokenRows(*(_from_arrow(table, field.name) for field in fields(TokenRows)))


def write_split_metadata(folder: Path, features: Features, shards: list[str], fingerprint: str) -> None:
    """Write the two JSON files that make a folder of shards a `datasets.Dataset`."""
    DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    write_json(folder / "state.json", state)


def _to_arrow(array: NDArray, arrow_type: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(arrow_type):
        return pa.array(array, type=arrow_type)
    values = pa.array(np.ascontiguousarray(array).reshape(-1), type=arrow_type.value_type)
    # from_buffers, as FixedSizeListArray.from_arrays cannot tell the number of rows of an empty label.
    return pa.Array.from_buffers(arrow_type, len(array), [None], children=[values])


def _from_arrow(table: pa.Table, name: str) -> NDArray:
    column = table.column(name)
    arrow_type = column.type
    width = arrow_type.list_size if pa.types.is_fixed_size_list(arrow_type) else None
    if width is None:
        return column.chunk(0).to_numpy(zero_copy_only=True) if column.num_chunks else np.empty(0, np.int32)
    if width == 0 or not column.num_chunks:
        return np.empty((len(column), width), arrow_type.value_type.to_pandas_dtype())
    return column.chunk(0).values.to_numpy(zero_copy_only=True).reshape(len(column), width)
