"""The run config: one JSON file per SAE that is trained."""

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from utils.activation_cache import ActivationCache
from utils.atomic import read_json_object
from utils.checks import check_number, check_positive, check_whole
from utils.errors import UserError
from utils.sae import TOPK_POSTACTS, SAEConfig, check_gates
from utils.schedule import LR_DECAYS

PRECISIONS = ("float32", "bfloat16")
COMPILERS = ("", "inductor", "cudagraphs", "aot_eager")
CONTROLS = ("none", "shuffled_labels", "random_erasure")
PRETRAINED = "pretrained/"
_NAME = re.compile(r"(?P<model>[^-]+)-l(?P<n_latents>\d+)-b(?P<block>\d+)-k(?P<k>\d+)(-.+)?")


@dataclass(frozen=True)
class SAE_Train_config:  # noqa: N801 - the name that users of the released code know
    """Everything that decides a training run, beside the seed and the scaling of the concept loss.

    Attributes:
        batch_size: tokens of a step, in all processes together.
        ds_path: folder of the cached activations; `pretrained/REF` marks an SAE to load with
            `utils.sae_loading.load_sae(REF)`, never to train (then batch_size is -1 and lr 0).
        factor: latents per input; n_latents = n_inputs * factor.
        k: latents kept per token.
        lr: Adam's learning rate.
        max_epochs: passes over the training split.
        n_inputs: width of the activations.
        activation: see `utils.sae.ACTIVATIONS`.
        ckpt_path: folder for the checkpoint, instead of the script's --out.
        warmup_steps: steps over which the learning rate rises to `lr`.
        lr_decay: `none`, `linear` or `cosine`: how it falls to 0 at the last step.
        unit_norm_decoder: keep every decoder column at norm 1.
        aux_k: dead latents that learn from each token's residual (AuxK); 0: none.
        aux_k_coefficient: weight of that loss.
        dead_after_tokens: tokens without it after which a latent counts as dead for AuxK.
        precision: of the products, `float32` or `bfloat16`; weights, sums and Adam stay float32.
        accumulation_steps: parts a batch is computed in, one after the other, to save memory.
        early_stopping: epochs without a lower evaluation loss after which training ends; 0: never.
        compile: a backend of torch.compile, `inductor`, `cudagraphs` or `aot_eager`; empty: none.
        erase: `leace`: the latents that are tied to no concept see activations without what tells the concepts;
            `none`. This and what follows plays no part in a vanilla SAE.
        erase_parts: consecutive parts of the training texts whose labels are erased each on its own, as far as there
            are 100 texts for each; for labels of whole texts.
        erased_skip: hand what was erased to the decoder, past the latents.
        concept_gate: `topk`: a concept's latent must be among the k of a token; `threshold`: it stands outside, and is
            0 where its pre-activation is not above `gate_at`.
        gate_at: of guided tokens, 0: from a probability of a half on; -3: from 5 % on. With `text_loss` a token has a
            third of a text's log-odds.
        gate_margin: a concept's latent is 0, too, where its pre-activation lies further below the largest of theirs
            than this: 3.5: at a 33rd of the likeliest's odds; 0: however far. For concepts that exclude each other.
        concept_init: `logistic`: the concepts' latents start from a logistic regression; `random`.
        concept_lr: share of a step that the concepts' encoder rows and biases take, from 0 to 1.
        text_loss: guide the log-odds of a text, three times its tokens' mean pre-activation, not each token; for labels
            of whole texts.
        decorrelate: weight of the squared correlations of all other latents with the labels; 0: none.
        control: what the recipe is to be held against: `shuffled_labels`, or `random_erasure` of a subspace of the same
            rank; `none`.
    """

    batch_size: int
    ds_path: str
    factor: int
    k: int
    lr: float
    max_epochs: int
    n_inputs: int
    activation: str
    ckpt_path: str | None = None
    warmup_steps: int = 0
    lr_decay: str = "none"
    unit_norm_decoder: bool = False
    aux_k: int = 0
    aux_k_coefficient: float = 1 / 32
    dead_after_tokens: int = 1_000_000
    precision: str = "float32"
    accumulation_steps: int = 1
    early_stopping: int = 0
    compile: str = ""
    erase: str = "none"
    erase_parts: int = 1
    erased_skip: bool = False
    concept_gate: str = "topk"
    gate_at: float = 0.0
    gate_margin: float = 0.0
    concept_init: str = "random"
    concept_lr: float = 1.0
    text_loss: bool = False
    decorrelate: float = 0.0
    control: str = "none"

    def __post_init__(self) -> None:
        for key in ("ds_path", "activation"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{key}: must be a string, not {getattr(self, key)!r}")
        trained = () if self.pretrained else ("batch_size", "max_epochs")
        for key in (*trained, "factor", "k", "n_inputs"):
            check_whole(key, getattr(self, key), 1)
        if self.pretrained and (self.batch_size != -1 or self.lr != 0):
            raise UserError(f"ds_path {self.ds_path} is a pretrained SAE; its batch_size must be -1 and its lr 0")
        if not self.pretrained:
            check_positive("lr", self.lr)
        self._check_options()
        if self.ckpt_path is not None and not isinstance(self.ckpt_path, str):
            raise UserError(f"ckpt_path: must be a string, not {self.ckpt_path!r}")
        self.sae  # noqa: B018 - refuses impossible shapes early

    def _check_options(self) -> None:
        for key in ("warmup_steps", "aux_k", "early_stopping"):
            check_whole(key, getattr(self, key), 0)
        for key in ("dead_after_tokens", "accumulation_steps", "erase_parts"):
            check_whole(key, getattr(self, key), 1)
        choices = {
            "lr_decay": LR_DECAYS,
            "precision": PRECISIONS,
            "unit_norm_decoder": (False, True),
            "compile": COMPILERS,
            "erase": ("none", "leace"),
            "erased_skip": (False, True),
            "concept_gate": ("topk", "threshold"),
            "concept_init": ("random", "logistic"),
            "text_loss": (False, True),
            "control": CONTROLS,
        }
        for key, known in choices.items():
            value = getattr(self, key)
            if not any(type(value) is type(choice) and value == choice for choice in known):
                names = ", ".join(json.dumps(choice) for choice in known)
                raise UserError(f"{key}: {value!r} is unknown; choose one of {names}")
        check_positive("aux_k_coefficient", self.aux_k_coefficient)
        self._check_guidance()

    def _check_guidance(self) -> None:
        check_number("decorrelate", self.decorrelate, 0)
        check_number("concept_lr", self.concept_lr, 0, 1)
        check_gates(self.gate_at, self.gate_margin, self.concept_gate == "threshold", "concept_gate threshold")
        if self.erase_parts > 1 and self.erase == "none":
            raise UserError("erase_parts: are those of what is erased; they need erase leace")
        if self.erased_skip and self.erase == "none":
            raise UserError("erased_skip: hands on what is erased; it needs erase leace")
        if self.control == "random_erasure" and self.erase == "none":
            raise UserError("control: random_erasure needs erase leace")
        if self.concept_gate == "threshold" and self.activation not in TOPK_POSTACTS:
            raise UserError(f"concept_gate: threshold needs a TopK activation, not {self.activation}")
        if self.aux_k and self.activation not in TOPK_POSTACTS:
            raise UserError(f"aux_k: needs a TopK activation, not {self.activation}")
        if self.batch_size % self.accumulation_steps and not self.pretrained:
            raise UserError(
                f"accumulation_steps: {self.accumulation_steps} does not divide the batch_size {self.batch_size}"
            )

    @property
    def pretrained(self) -> bool:
        """Whether `ds_path` names no activations but an SAE that others trained: `pretrained/<format>:<location>`."""
        return self.ds_path.startswith(PRETRAINED)

    @property
    def sae(self) -> SAEConfig:
        """The SAE's shape and activation."""
        return SAEConfig(self.n_inputs, self.n_inputs * self.factor, self.k, self.activation)

    def guided_sae(self, n_concepts: int, erased_rank: int = 0) -> SAEConfig:
        """Return the shape and activation with as many concepts guided; 0: a vanilla SAE.

        Args:
            n_concepts: C.
            erased_rank: of what is erased.
        """
        sae = replace(self.sae, skip_rank=erased_rank if self.erased_skip else 0)
        if self.concept_gate == "topk" or n_concepts == 0:
            return sae
        return replace(sae, n_gated=n_concepts, gate_at=self.gate_at, gate_margin=self.gate_margin)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def load_train_config(path: Path) -> SAE_Train_config:
    """Read a run config.

    Raises:
        UserError: no JSON object, missing or unknown keys, impossible values, or a file name that says otherwise.
    """
    values = read_json_object(path)
    known = {field.name for field in fields(SAE_Train_config)}
    needed = {field.name for field in fields(SAE_Train_config) if field.default is MISSING}
    if unknown := values.keys() - known:
        raise UserError(f"{path}: unknown key(s) {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    if missing := needed - values.keys():
        raise UserError(f"{path}: missing key(s) {', '.join(sorted(missing))}")
    try:
        config = SAE_Train_config(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _check_name(path, {"n_latents": config.sae.n_latents, "k": config.k})
    return config


def check_against_cache(path: Path, config: SAE_Train_config, cache: ActivationCache) -> None:
    """Check that a config and the cache it names belong together.

    Raises:
        UserError: another width, another model or block than the file's name says, or fewer tokens than a batch.
    """
    if config.n_inputs != cache.d_model:
        raise UserError(
            f"{path}: n_inputs is {config.n_inputs}, but the activations in {cache.folder} are {cache.d_model} wide"
        )
    _check_name(path, {"model": cache.manifest["model"], "block": cache.manifest["block"]})
    if "train" not in cache.manifest["splits"]:
        raise UserError(f"{path}: ds_path {cache.folder} has no train split")
    n_tokens = cache.manifest["splits"]["train"]["tokens"]
    if config.batch_size > n_tokens:
        raise UserError(
            f"{path}: batch_size {config.batch_size} is more than the {n_tokens} training tokens in {cache.folder}"
        )


def _check_name(path: Path, truth: dict[str, int | str]) -> None:
    """Compare what a file name of the form `<model>-l<n>-b<bb>-k<k>[-more]` says; other names say nothing."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return
    for key, value in truth.items():
        said = match[key] if key == "model" else int(match[key])
        if said != value:
            raise UserError(f"{path}: its name says {key} {said}, its contents say {value}")
