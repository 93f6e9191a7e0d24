"""What is compared in a steering experiment: SAEs by their latents, and the rival methods, all behind one interface."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils.activation_cache import ActivationCache
from utils.activation_store import cache_name
from utils.concept_latents import concept_latents
from utils.errors import UserError
from utils.evaluated import Evaluated, check_fit, evaluated
from utils.labelled_text import LabelledText
from utils.latent_steerer import LatentSteerer
from utils.models import compute_dtype, default_device, find_model, load_config, load_language_model, load_tokenizer
from utils.rivals.diffvec import DiffVec
from utils.rivals.icv import ICV
from utils.rivals.model_arithmetic import ModelArithmetic
from utils.rivals.preadd import PreAdd
from utils.rivals.states import make_pairs
from utils.rivals.tuned import DEFAULT_PAIRS, Tuned, load_tuned
from utils.rivals.vectors import VectorSteerer
from utils.sae_loading import get_model
from utils.scorers.base import Scored, Scorer
from utils.steerers import Steerer
from utils.steering import BETAS
from utils.steering_experiment import Experiment

VECTORS: dict[str, type[ICV] | type[DiffVec]] = {"icv": ICV, "diffvec": DiffVec}
FORMULAS = ("preadd", "model-arithmetic", "model-arithmetic-union")
RIVALS = (*VECTORS, *FORMULAS)
DEFAULT_MODEL = "smollm2"


@dataclass(frozen=True)
class Candidate:
    """One way of steering one language model.

    Attributes:
        label: what it is called in the results.
        name: candidates of one name are seeds of one.
        guided: whether it is a guided SAE.
        method: a beta, or a rival's name.
        model: the name of the language model.
        revision: of its weights.
        made_of: what decides completions, but for the strength.
        alphas: the strengths of its sweep, where none are given.
        load: gives the language model, its tokenizer (which pads on the left), and the steerer.
    """

    label: str
    name: str
    guided: bool
    method: str
    model: str
    revision: str
    made_of: dict[str, Any]
    alphas: tuple[float, ...]
    load: Callable[[], tuple[Any, Any, Steerer]]


def candidates(
    args: argparse.Namespace, data: LabelledText, experiment: Experiment, classifier: Scorer | None = None
) -> list[Candidate]:
    """Return what is to be compared: every SAE of `args.sae` by every beta, and every rival of `args.method`.

    Args:
        args: what `utils.steering_report.add_arguments` parsed.
        data: the texts.
        experiment: see there.
        classifier: tells how probable the effect is; for Model Arithmetic.

    Raises:
        UserError: neither an SAE nor a rival; a bad reference or latent; a model that cannot be found.
    """
    methods = list(dict.fromkeys(args.method or ([] if not args.sae else experiment.betas)))
    own_betas = [method for method in methods if method in BETAS]
    rivals = [method for method in methods if method in RIVALS]
    if args.sae and not own_betas:
        own_betas = list(experiment.betas)
    if own_betas and not args.sae:
        raise UserError(f"--method {own_betas[0]} steers by an SAE's latents; give --sae")
    if not own_betas and not rivals:
        raise UserError(f"give an SAE with --sae, or a rival with --method: {', '.join(RIVALS)}")
    found: list[Candidate] = []
    for subject in evaluated(args, data.name, live=True) if args.sae else []:
        latents = steering_latents(subject, args, data.concepts, tokens=experiment.tokens)
        kind = "g-sae" if subject.loaded.is_guided else "sae"
        alphas = _tuned(args, kind, data, subject.model, experiment).strengths if args.tuned else experiment.alphas
        found += [_of_sae(subject, args, LatentSteerer(latents, beta), alphas) for beta in own_betas]
    return found + [_of_rival(method, args, data, experiment, classifier) for method in rivals]


def _tuned(args: argparse.Namespace, method: str, data: LabelledText, model: str, experiment: Experiment) -> Tuned:
    only_down = max(experiment.alphas) <= 0
    return load_tuned(args.tuned_settings, method, data.name, model, only_down=only_down)


def _of_sae(
    subject: Evaluated, args: argparse.Namespace, steerer: LatentSteerer, alphas: tuple[float, ...]
) -> Candidate:
    source = find_model(subject.model, args.model_path)
    dtype = compute_dtype(load_config(source), default_device())

    def load() -> tuple[Any, Any, Steerer]:
        ref = str(subject.loaded.origin["ref"])
        where = {"model_path": args.model_path, "block": subject.block, "site": subject.site}
        model, tokenizer = get_model(subject.model, ref, **where, dtype=dtype)
        return model.to(default_device()), tokenizer, steerer

    beta, name = steerer.beta, subject.name
    by = f", latents {' '.join(map(str, steerer.latents))}" if args.latents else ""
    made_of = subject.made_of | steerer.settings | {"dtype": _name(dtype)}
    label, guided = f"{subject.label} ({beta}{by})", subject.loaded.is_guided
    return Candidate(label, name, guided, beta, subject.model, source.revision, made_of, alphas, load)


def _of_rival(
    method: str, args: argparse.Namespace, data: LabelledText, experiment: Experiment, classifier: Scorer | None
) -> Candidate:
    name = args.model or DEFAULT_MODEL
    source = find_model(name, args.model_path)
    dtype = _name(compute_dtype(load_config(source), default_device()))
    tuned = _tuned(args, method, data, name, experiment)
    made_of: dict[str, Any] = {"method": method, "model": name, "revision": source.revision, "dtype": dtype}
    if method in VECTORS:
        pairs = args.pairs or tuned.options.get("pairs", DEFAULT_PAIRS)
        made_of |= {"pairs": pairs, "seed": args.seed, "texts_sha256": data.fingerprint()}
    else:
        made_of |= {"prefix": args.prefix or tuned.options.get("prefix", experiment.prefixes[0])}
    if classifier is not None and method.startswith("model-arithmetic"):
        made_of |= {"classifier": classifier.fingerprint}

    def load() -> tuple[Any, Any, Steerer]:
        model, tokenizer = load_language_model(source, default_device()), load_tokenizer(source)
        tokenizer.padding_side = "left"
        if method in VECTORS:
            return model, tokenizer, _vectors(method, made_of, data, partial(VECTORS[method].fit, model, tokenizer))
        if method == "preadd":
            return model, tokenizer, PreAdd(made_of["prefix"], tokenizer)
        union, attribute = method.endswith("union"), None
        if classifier is not None:
            attribute = partial(_probabilities, classifier, experiment.effect)
        return model, tokenizer, ModelArithmetic(made_of["prefix"], tokenizer, union=union, attribute=attribute)

    label = f"{name} ({method}{' with a classifier' if 'classifier' in made_of else ''})"
    return Candidate(label, method, False, method, name, source.revision, made_of, tuned.strengths, load)


def _probabilities(classifier: Scorer, effect: str, texts: list[str]) -> list[float]:
    """Return how probable the effect is in each text; where that cannot be told, an even chance."""
    scores = classifier.score([Scored("", text) for text in texts])
    return [(own or {}).get(effect, 0.5) for own in scores]


def _vectors(
    method: str, made_of: dict[str, Any], data: LabelledText, fit: Callable[..., VectorSteerer]
) -> VectorSteerer:
    """Return vectors that were fitted before, or fit and store them."""
    n_pairs, seed = made_of["pairs"], made_of["seed"]
    folder = Path("ckpt/rivals") / f"{method}-{made_of['model']}-{data.name}-p{n_pairs}-s{seed}"
    if folder.exists():
        known = VECTORS[method].load(folder)
        if known.about != made_of:
            raise UserError(f"{folder} was fitted on other texts or weights; remove it to fit anew")
        return known
    if "train" not in data.splits:
        raise UserError(f"{data.name} has no train split to fit {method} on; it has {', '.join(data.splits)}")
    pairs = make_pairs(data.splits["train"], data.concepts, n_pairs, seed)
    fitted = fit(pairs, made_of)
    fitted.save(folder)
    return fitted


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def steering_latents(
    subject: Evaluated, args: argparse.Namespace, concepts: list[str], *, tokens: bool
) -> tuple[int, ...]:
    """Return the latents to steer by: those asked for, those tied to the concepts of a guided SAE, else the roots.

    Raises:
        UserError: a latent out of range; an SAE that was guided by other concepts, or not guided, of which no
            activations are there to choose on.
    """
    origin, n_latents = subject.loaded.origin, subject.loaded.sae.config.n_latents
    if args.latents:
        for latent in args.latents:
            if not 0 <= latent < n_latents:
                raise UserError(f"--latents {latent}: {subject.label} has latents 0 to {n_latents - 1}")
        return tuple(dict.fromkeys(args.latents))
    if subject.loaded.is_guided and origin.get("concepts"):
        tied = [c for c, concept in enumerate(origin["concepts"]) if concept in concepts]
        if not tied:
            raise UserError(f"{subject.label}: guided by {', '.join(origin['concepts'])}, not by {', '.join(concepts)}")
        return tuple(tied)
    if "dataset" not in origin:
        raise UserError(f"{subject.label}: does not tell its concepts' latents; give --latents")
    folder = args.data / cache_name(subject.model, origin["dataset"], subject.block, subject.site)
    cached = replace(subject, stored=ActivationCache(folder))
    check_fit(subject.label, subject.loaded, cached.cache)
    split = "train" if "train" in cached.cache.manifest["splits"] else cached.split_name(None)
    found = concept_latents(cached, split, tokens=tokens, seed=args.seed)
    own = [int(latent) for latent, concept in zip(found, cached.cache.concepts, strict=True) if concept in concepts]
    latents = tuple(dict.fromkeys(latent for latent in own if latent >= 0))
    if not latents:
        raise UserError(f"{subject.label}: no latent tells any concept apart; give --latents")
    return latents
