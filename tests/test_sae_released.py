"""SAEs of the paper's released code: bare files, and Determined checkpoints with their pickles."""

import pickle

import numpy as np
import pytest
import torch

from tests.sae_parts import D, K, assert_same, released_tensors, top, write_json
from utils.errors import UserError
from utils.sae_loading import load_sae


def guided_formula(p, x):
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    pre_BN = ((x - mean) / (std + 1e-5) - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    latents_BN = torch.sigmoid(pre_BN) * top(pre_BN)
    return latents_BN, (latents_BN @ p["W_dec"] + p["b_dec"]) * std + mean


RUN = {
    "batch_size": 2048, "ds_path": "x", "factor": 3, "k": K, "lr": 1e-5, "max_epochs": 100, "n_inputs": D,
    "activation": "topk-sigmoid",
}  # fmt: skip


def test_released_names_and_the_tied_decoder(parts, x, tmp_path):
    write_json(tmp_path / "sae.json", RUN)
    torch.save(released_tensors(parts), tmp_path / "sae.pt")
    assert_same(load_sae(f"released:{tmp_path}/sae.pt"), x, *guided_formula(parts, x))
    tied = {f"module.{name}": tensor for name, tensor in released_tensors(parts).items() if "decoder" not in name}
    tied["module.decoder.linear.weight"] = tied["module.encoder.weight"]
    torch.save(tied, tmp_path / "tied.pt")
    loaded = load_sae(f"released:{tmp_path}/tied.pt", run_config=tmp_path / "sae.json")
    assert_same(loaded, x, *guided_formula(parts | {"W_dec": parts["W_enc"].T}, x))
    with pytest.raises(UserError, match=r"tied.json: no such file"):
        load_sae(f"released:{tmp_path}/tied.pt")


class Hostile:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_determined(folder, p, config_path, scaling, epochs, **metadata):
    folder.mkdir(parents=True)
    hparams = {"config_path": str(config_path), "cond_loss_scaling": scaling, "global_batch_size": 2048}
    write_json(folder / "load_data.json", {"trial_type": "PyTorchTrial", "hparams": hparams})
    write_json(folder / "metadata.json", {"steps_completed": epochs, "framework": "torch"} | metadata)
    state = {
        "models_state_dict": [released_tensors(p)], "optimizers_state_dict": [{}],
        "rng_state": {"np_rng_state": np.arange(5, dtype="uint32"), "cpu": torch.zeros(3)},
    }  # fmt: skip
    torch.save(state, folder / "state_dict.pth")
    (folder / "trial_state.pkl").write_bytes(pickle.dumps({"trial_id": 1, "epochs_trained": epochs, "last_val": 3}))


def test_determined_storage_is_searched_by_name_scaling_and_epoch(parts, x, tmp_path):
    run = tmp_path / "llama3-l24-b11-k4.json"
    write_json(run, RUN)
    other = {name: tensor + 1 for name, tensor in parts.items()}
    storage = tmp_path / "storage"
    write_determined(storage / "uuid-a", other, run, 0, 100)
    write_determined(storage / "uuid-b", other, run, 1, 50, validation_loss=0.1)
    write_determined(storage / "uuid-c", parts, run, 1, 100, validation_loss=0.2)
    name = f"determined:{storage}/llama3-l24-b11-k4"
    assert_same(load_sae(f"{name}_s1"), x, *guided_formula(parts, x))
    assert_same(load_sae(f"{name}_s1@100"), x, *guided_formula(parts, x))
    assert_same(load_sae(f"{name}_s1@50"), x, *guided_formula(other, x))
    assert_same(load_sae(f"{name}_s1@best"), x, *guided_formula(other, x))
    loaded = load_sae(f"determined:{storage}/uuid-c")
    assert_same(loaded, x, *guided_formula(parts, x))
    assert loaded.origin["epochs_trained"] == 100
    with pytest.raises(
        UserError, match=r"no such checkpoint in .*; it holds llama3-l24-b11-k4_s0, llama3-l24-b11-k4_s1"
    ):
        load_sae(f"{name}_s5")
    run.unlink()
    with pytest.raises(UserError, match=r"its run config .* is not there"):
        load_sae(f"{name}_s1")
    moved = tmp_path / "moved.json"
    write_json(moved, RUN)
    assert_same(load_sae(f"{name}_s1", run_config=moved), x, *guided_formula(parts, x))


@pytest.mark.parametrize("file", ["state_dict.pth", "trial_state.pkl"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(parts, tmp_path, file):
    run = tmp_path / "r.json"
    write_json(run, RUN)
    folder = tmp_path / "ckpt"
    write_determined(folder, parts, run, 1, 3)
    trap = tmp_path / "trap"
    if file == "state_dict.pth":
        torch.save({"models_state_dict": [released_tensors(parts)], "more": Hostile(trap)}, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps({"epochs_trained": Hostile(trap)}))
    with pytest.raises(UserError, match=f"{file}: .*refused"):
        load_sae(f"determined:{folder}")
    assert not trap.exists()
