"""The claim: a step costs little more than its dense products on a GPU, and less on a CPU; faster than the others.

Each round times one step of every implementation, one after the other, so that a slower moment of the machine meets
all of them; the medians are compared. Ours is the step that train_SAE.py makes, with all that it measures. The dense
reference is the usual formulation: autograd through topk and scatter. sae-lens and sparsify (optional group `interop`)
make their own forward passes without labels; all use the same clipping and fused Adam.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from utils.activation_cache import ActivationCache
from utils.activation_reader import Batch
from utils.activation_store import FORMAT, TokenRows, row_features, shard_name, write_shard
from utils.atomic import write_json
from utils.cli import Parser, positive_int, run
from utils.losses import concept_losses, reconstruction_loss
from utils.models import default_device
from utils.topk_products import top_indices
from utils.train_config import SAE_Train_config
from utils.training_core import CLIP_NORM, TrainingCore

BATCH_SIZE, N_CONCEPTS = 2048, 1
Shape = tuple[int, int, int]  # inputs, latents, k
SHAPES: list[Shape] = [(576, 3456, 288), (576, 3456, 32), (2048, 12_288, 1024), (2048, 12_288, 32)]
GPU_SHAPES: list[Shape] = [(4096, 24_576, 2048), (4096, 24_576, 32)]
GUIDED, VANILLA, DENSE, PRODUCTS = "ours, guided", "ours, vanilla", "dense reference", "five dense products"
LENS, SPARSIFY = "sae-lens", "sparsify"
Step = Callable[[], object]
EXAMPLES = """\
examples:
  python benchmarks/training.py                        # all shapes of this machine: a few minutes
  python benchmarks/training.py --shape 576 3456 288 --rounds 21
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, do the work and print Markdown tables."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--shape", type=positive_int, nargs=3, metavar=("INPUTS", "LATENTS", "K"), help="only this one")
    parser.add_argument("--rounds", type=positive_int, default=9, help="rounds after two to warm up")
    parser.add_argument("--threads", type=positive_int, help="for PyTorch; by default one per core")
    parser.add_argument("--peak", metavar="NAME", help="print the memory in MB that a few steps of one take, and exit")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    gpu = default_device().type == "cuda"
    shapes = [tuple(args.shape)] if args.shape else GPU_SHAPES if gpu else SHAPES
    with tempfile.TemporaryDirectory() as scratch:
        if args.peak:
            print(_peak(shapes[0], args.peak, Path(scratch)))
            return
        where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
        print(f"{where}, {BATCH_SIZE} tokens, {'bfloat16 products' if gpu else 'float32'}, {args.rounds} rounds")
        for shape in shapes:
            _compare(shape, args.rounds, Path(scratch))


def _compare(shape: Shape, rounds: int, scratch: Path) -> None:
    steps = {name: make() for name, make in _makers(shape, scratch).items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in list(steps.items())[:: 1 if turn % 2 else -1]:  # everybody after everybody else
            seconds = _seconds(step)
            if turn >= 2:
                times[name].append(seconds)
    medians = {name: median(values) for name, values in times.items()}
    n_inputs, n_latents, k = shape
    print(f"\n{n_inputs} -> {n_latents} latents, k {k}\n")
    print("| one step | ms | / five dense products | peak memory, MB |\n|---|---|---|---|")
    for name, seconds in medians.items():
        memory = "" if name == PRODUCTS else str(_peak_elsewhere(shape, name))
        print(f"| {name} | {1e3 * seconds:.0f} | {seconds / medians[PRODUCTS]:.2f} | {memory} |")
    pairs = [after / before for before, after in zip(times[VANILLA], times[GUIDED], strict=True)]
    print(f"\nguided costs {median(pairs) - 1:+.1%} over vanilla (median of the rounds' ratios)")
    flops = 10 * BATCH_SIZE * n_inputs * n_latents
    print(f"dense products run at {flops / medians[PRODUCTS] / 1e9:.0f} GFLOP/s;", end=" ")
    print(f"a guided step does its dense FLOPs at {flops / medians[GUIDED] / 1e9:.0f} GFLOP/s")
    _parts(shape, rounds)
    _loader(shape, scratch)


def _makers(shape: Shape, scratch: Path) -> dict[str, Callable[[], Step]]:
    device = default_device()
    acts_BD = torch.randn(BATCH_SIZE, shape[0], device=device)
    makers: dict[str, Callable[[], Step]] = {
        PRODUCTS: lambda: _products(shape),
        GUIDED: lambda: _ours(shape, scratch, 1.0),
        VANILLA: lambda: _ours(shape, scratch, 0.0),
        DENSE: lambda: _trained(_DenseReference(shape).to(device), acts_BD),
    }
    for name, module, make in ((LENS, "sae_lens", _lens), (SPARSIFY, "sparsify", _sparsify)):
        if find_spec(module) is None:
            sys.stderr.write(f"{name} is not installed (poetry install --with interop); it is left out\n")
        else:
            makers[name] = partial(make, shape, acts_BD)
    return makers


def _products(shape: Shape) -> Step:
    """Return the products of encoder and decoder, forward and backward; the input needs no gradient."""
    n_inputs, n_latents, _ = shape
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x_BD, latents_BN, weight_ND = (
        torch.randn(size, device=device, dtype=dtype)
        for size in ((BATCH_SIZE, n_inputs), (BATCH_SIZE, n_latents), (n_latents, n_inputs))
    )

    def products() -> None:
        for _ in range(2):
            x_BD @ weight_ND.T  # pre-activations; the latents' gradient
            latents_BN.T @ x_BD  # both weights' gradients
        latents_BN @ weight_ND  # the reconstruction

    return products


def _ours(shape: Shape, scratch: Path, scaling: float) -> Step:
    core = _core(shape, scratch, scaling)
    batches = chain.from_iterable(core.reader.epoch(0) for _ in repeat(None))
    batch: Batch = next(batches)
    return lambda: core.step(batch)


def _core(shape: Shape, scratch: Path, scaling: float) -> TrainingCore:
    n_inputs, n_latents, k = shape
    cache = _cache(n_inputs, scratch)
    config = SAE_Train_config(
        batch_size=BATCH_SIZE, ds_path=str(cache.folder), factor=n_latents // n_inputs, k=k, lr=1e-4, max_epochs=1,
        n_inputs=n_inputs, activation="topk-sigmoid",
        precision="bfloat16" if default_device().type == "cuda" else "float32",
    )  # fmt: skip
    return TrainingCore(config, cache, scaling, seed=0)


def _cache(n_inputs: int, scratch: Path, n_tokens: int = 16 * BATCH_SIZE) -> ActivationCache:
    """Return a cache of random activations."""
    folder = scratch / f"random-{n_inputs}"
    if not folder.exists():
        rng = np.random.default_rng(0)
        acts_BD = rng.standard_normal((n_tokens, n_inputs), dtype=np.float32).astype(np.float16)
        numbers = np.arange(n_tokens, dtype=np.int32)
        labels = rng.integers(0, 2, (n_tokens, N_CONCEPTS), dtype=np.int8)
        name = shard_name(0, 1)
        features = row_features(n_inputs, N_CONCEPTS, "float16")
        write_shard(folder / "train" / name, TokenRows(acts_BD, labels, numbers, numbers, numbers), features)
        about = dict.fromkeys(("dataset", "model", "revision", "site"), "random")
        sizes = {"dtype": "float16", "d_model": n_inputs, "block": 0, "concepts": ["RANDOM"]}
        splits = {"train": {"tokens": n_tokens, "shards": [{"file": name}]}}
        write_json(folder / "manifest.json", {"format": FORMAT, "splits": splits} | about | sizes)
    return ActivationCache(folder)


class _DenseReference(nn.Module):
    """The guided SAE as one writes it at first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n_inputs, n_latents, self.k = shape
        self.pre_bias, self.latent_bias = (nn.Parameter(torch.zeros(n)) for n in (n_inputs, n_latents))
        self.encoder = nn.Linear(n_inputs, n_latents, bias=False)
        self.decoder = nn.Linear(n_latents, n_inputs, bias=False)
        self.decoder.weight.data = self.encoder.weight.data.T.contiguous()
        self.labels_BC = torch.randint(0, 2, (BATCH_SIZE, N_CONCEPTS))

    def forward(self, acts_BD: Tensor) -> Tensor:
        """Return the guided loss."""
        with torch.autocast("cuda", torch.bfloat16, enabled=acts_BD.is_cuda):
            mean_B1 = acts_BD.mean(dim=1, keepdim=True)
            std_B1 = (acts_BD - mean_B1).std(dim=1, keepdim=True)
            z_BD = (acts_BD - mean_B1) / (std_B1 + 1e-5)
            pre_BN = self.encoder(z_BD - self.pre_bias) + self.latent_bias
            values_BK, indices_BK = pre_BN.topk(self.k, dim=1)
            latents_BN = torch.zeros_like(pre_BN).scatter(1, indices_BK, torch.sigmoid(values_BK))
            reconstruction_BD = (self.decoder(latents_BN) + self.pre_bias) * std_B1 + mean_B1
        loss_c_B = concept_losses(pre_BN[:, :N_CONCEPTS].float(), self.labels_BC.to(acts_BD.device)).sum(dim=1)
        return (reconstruction_loss(reconstruction_BD.float(), acts_BD) + loss_c_B).mean()


def _lens(shape: Shape, acts_BD: Tensor) -> Step:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    n_inputs, n_latents, k = shape
    options = {"device": str(acts_BD.device), "rescale_acts_by_decoder_norm": False}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=n_inputs, d_sae=n_latents, k=k, **options))
    given = TrainStepInput(acts_BD, {"auxiliary_reconstruction_loss": 0.0}, None, 1, False)

    def loss(_: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=acts_BD.is_cuda):
            value: Tensor = sae.training_forward_pass(given).loss
            return value

    return _trained(sae, acts_BD, loss)


def _sparsify(shape: Shape, acts_BD: Tensor) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig

    n_inputs, n_latents, k = shape
    sae = SparseCoder(n_inputs, SparseCoderConfig(num_latents=n_latents, k=k), device=acts_BD.device)
    return _trained(sae, acts_BD, lambda acts_BD: sae(acts_BD).fvu)


def _trained(model: nn.Module, acts_BD: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        (loss or model)(acts_BD).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _parts(shape: Shape, rounds: int) -> None:
    """Time what a step is made of, alone."""
    n_inputs, n_latents, k = shape
    device = default_device()
    pre_BN = torch.randn(BATCH_SIZE, n_latents, device=device)
    weights = [torch.randn(n_latents, n_inputs, device=device, requires_grad=True) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.Adam(weights, fused=True)
    parts: dict[str, Step] = {
        "TopK": lambda: top_indices(pre_BN, k),
        "clipping": lambda: torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM),
        "Adam": optimizer.step,
    }
    times = {name: median(_seconds(part) for _ in range(rounds)) for name, part in parts.items()}
    print("alone: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items()))


def _loader(shape: Shape, scratch: Path) -> None:
    """Measure how long steps wait for their data, over an epoch."""
    core, waiting = _core(shape, scratch, 1.0), 0.0
    batches = core.batches()
    core.step(next(batches))
    began = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waiting += time.perf_counter() - asked
        if batch is None:
            break
        core.step(batch)
    _synchronise()
    print(f"the loader makes steps wait {waiting / (time.perf_counter() - began):.1%} of their time")


def _peak_elsewhere(shape: Shape, name: str) -> int:
    command = [sys.executable, __file__, "--peak", name, "--shape", *(str(n) for n in shape)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def _peak(shape: Shape, wanted: str, scratch: Path) -> int:
    """Return the MB that three steps take above what the program had before, in a process of their own."""
    if wanted in (GUIDED, VANILLA):
        _core((8, 64, 2), scratch, 1.0).step(next(_core((8, 64, 2), scratch, 1.0).batches()))  # loads what is compiled
    make = _makers(shape, scratch)[wanted]
    _memory()
    before = _memory()
    step = make()
    for _ in range(3):
        step()
    return (_memory() - before) // 2**20


def _memory() -> int:
    """Return the most bytes of memory in use since the call before."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    lines = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; Linux alone has both
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _seconds(step: Step) -> float:
    _synchronise()
    start = time.perf_counter()
    step()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(main)
