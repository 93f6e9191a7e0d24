"""The libraries themselves: what they write loads here, what is written here loads there. Needs the group `interop`."""

import dataclasses
import json

import pytest
import torch

from utils.sae import SAE, SAEConfig
from utils.sae_export import to_saelens
from utils.sae_loading import LoadedSAE, load_sae

pytestmark = pytest.mark.interop
D, N, K = 16, 64, 6


@pytest.fixture
def x():
    return torch.randn(100, D) * 2 + 0.5


def fill(module):
    for parameter in module.parameters():
        parameter.data.normal_(std=0.4)


@pytest.mark.parametrize("n_latents", [0, N])
def test_sparsify_writes_and_we_read(tmp_path, x, n_latents, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # read when it is imported; its kernels need a GPU
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed: make test-interop")
    config = sparsify.SparseCoderConfig(expansion_factor=N // D, num_latents=n_latents, k=K)
    theirs = sparsify.SparseCoder(D, config)
    fill(theirs)
    theirs.save_to_disk(tmp_path / "layers.3")
    ours = load_sae(f"sparsify:{tmp_path}/layers.3")
    with torch.no_grad():
        output = theirs(x)
        latents_BN = torch.zeros(len(x), N).scatter(1, output.latent_indices, output.latent_acts)
    torch.testing.assert_close(ours.sae.encode(x), latents_BN, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sae(x).reconstruction_BD, output.sae_out, rtol=1e-5, atol=1e-5)


def saelens_configs():
    lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: make test-interop")
    from sae_lens import JumpReLUSAEConfig, StandardSAEConfig, TopKSAEConfig

    plain = StandardSAEConfig(d_in=D, d_sae=N)
    return lens, [
        plain,
        dataclasses.replace(plain, apply_b_dec_to_input=False),
        dataclasses.replace(plain, normalize_activations="layer_norm"),
        dataclasses.replace(plain, normalize_activations="constant_norm_rescale"),
        TopKSAEConfig(d_in=D, d_sae=N, k=K, normalize_activations="layer_norm"),
        TopKSAEConfig(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=True),
        JumpReLUSAEConfig(d_in=D, d_sae=N, apply_b_dec_to_input=False),
    ]


@pytest.mark.parametrize("number", range(7))
def test_saelens_writes_and_we_read(tmp_path, x, number):
    lens, configs = saelens_configs()
    theirs = lens.SAE.get_sae_class_for_architecture(configs[number].architecture())(configs[number])
    fill(theirs)
    if hasattr(theirs, "threshold"):
        theirs.threshold.data.abs_()
    theirs.save_model(tmp_path / "sae")
    ours = load_sae(f"saelens:{tmp_path}/sae").sae
    with torch.no_grad():
        latents_BN = theirs.encode(x)
        reconstruction_BD = theirs.decode(latents_BN)
    torch.testing.assert_close(ours.encode(x), latents_BN, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x).reconstruction_BD, reconstruction_BD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SAEConfig(D, N, K, "topk-sigmoid"),
        SAEConfig(D, N, K, "topk"),
        SAEConfig(D, N, 1, "relu", normalisation="none", input_scale=0.4),
        SAEConfig(D, N, 1, "jumprelu", normalisation="constant_norm", subtract_pre_bias=False),
    ],
    ids=lambda config: config.activation,
)
def test_we_write_and_saelens_reads(tmp_path, x, config):
    lens, _ = saelens_configs()
    from utils.saelens_class import register

    assert register() is register()
    sae = SAE(config)
    fill(sae)
    if config.activation == "jumprelu":
        sae.threshold.data.abs_()
    sae.requires_grad_(False)
    origin = {"model": "smollm2", "block": 15, "site": "block", "concepts": ["WHO"]}
    to_saelens(LoadedSAE(sae, "guided", origin), tmp_path / "sae")
    theirs = lens.SAE.load_from_disk(tmp_path / "sae")
    assert theirs.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    with torch.no_grad():
        latents_BN = theirs.encode(x)
        reconstruction_BD = theirs.decode(latents_BN)
    torch.testing.assert_close(latents_BN, sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction_BD, sae(x).reconstruction_BD, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_a_real_determined_trainer_loads(tmp_path, x, monkeypatch):
    """Off the cluster, by Determined's own Trainer: a trial whose model has the released key names."""
    pytest.importorskip("determined", reason="determined is not installed: make test-interop")
    from determined import pytorch

    from utils.sae_formats import released

    class Trial(pytorch.PyTorchTrial):
        def __init__(self, context):
            self.context = context
            self.model = context.wrap_model(SAE(SAEConfig(D, N, K)))
            self.optimizer = context.wrap_optimizer(torch.optim.Adam(self.model.parameters(), lr=1e-3))

        def build_training_data_loader(self):
            return pytorch.DataLoader(torch.utils.data.TensorDataset(x), batch_size=20)

        def build_validation_data_loader(self):
            return pytorch.DataLoader(torch.utils.data.TensorDataset(x), batch_size=20)

        def train_batch(self, batch, epoch_idx, batch_idx):
            loss = (self.model(batch[0]).reconstruction_BD - batch[0]).square().mean()
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer)
            return {"loss": loss}

        def evaluate_batch(self, batch):
            return {"validation_loss": (self.model(batch[0]).reconstruction_BD - batch[0]).square().mean()}

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "storage"))  # where checkpoints go off the cluster
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")  # which is copied into each checkpoint
    run = {"k": K, "activation": "topk-sigmoid"}
    (tmp_path / "tiny.json").write_text(json.dumps(run))
    hparams = {"global_batch_size": 20, "config_path": "tiny.json", "cond_loss_scaling": 1}
    with pytorch.init(hparams=hparams) as context:
        trial = Trial(context)
        pytorch.Trainer(trial, context).fit(max_length=pytorch.Epoch(2), checkpoint_policy="all")
    folders = {
        released._trial_state(path.parent)["epochs_trained"]: path.parent for path in tmp_path.rglob("state_dict.pth")
    }
    assert 2 in folders
    loaded = load_sae(f"determined:{folders[2]}", run_config=tmp_path / "tiny.json")
    assert loaded.origin["epochs_trained"] == 2
    for name, tensor in trial.model.state_dict().items():
        torch.testing.assert_close(loaded.sae.state_dict()[name], tensor, rtol=0, atol=0)
