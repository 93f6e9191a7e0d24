"""An SAE and the cached activations it is measured on: found, checked, and named. What the scripts of eval/ share."""

import argparse
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.activation_cache import EVALUATION_SPLITS, ActivationCache
from utils.activation_store import cache_name
from utils.atomic import differences
from utils.cli import Parser, seed
from utils.errors import UserError
from utils.labelled_text import LabelledText, load_labelled_text
from utils.models import ModelSource, find_model, load_config
from utils.sae_loading import FORMATS, LoadedSAE, load_sae

SAE_HELP = f"""\
An SAE is a checkpoint folder of ours, or format:location with one of the formats {", ".join(FORMATS)}.
The cached activations of its model, block and site must be there (create_data/act_dataset.py). With several --block a
REF may hold {{block}} or {{block:02}}, such as ckpt/smollm2-l1728-b{{block:02}}-k144-SP_s1.
"""


def add_sae_arguments(parser: Parser, out: str, *, required: bool = True) -> None:
    """Add the options that say which SAEs are measured and on which activations; `out` is the default folder's name."""
    parser.add_argument("--sae", action="append", required=required, metavar="REF", help="an SAE; several are compared")
    parser.add_argument("--split", help="split to measure on (default: test, or valid where there is no test)")
    parser.add_argument("--model", help="the SAE's language model, where its format does not tell a name of ours")
    parser.add_argument("--block", type=int, nargs="+", help="the SAE's block, where its format does not tell; a sweep")
    parser.add_argument("--site", help="likewise: block, mlp or attention")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--out", type=Path, help=f"folder for results (default: results/{out})")
    parser.add_argument("--seed", type=seed, default=0, help="of everything that is drawn")


@dataclass(frozen=True)
class Evaluated:
    """An SAE and its activations.

    Attributes:
        label: what it is called in the results: its reference, and the block where one SAE is measured on several.
        loaded: the SAE and where it comes from.
        model: the name of its language model.
        block: of that.
        site: in the block.
        stored: activations of that hook point; None where the language model is to be run instead.
        revision: of the language model's weights, where it is to be run.
        name: SAEs of one name are seeds of one.
    """

    label: str
    loaded: LoadedSAE
    model: str
    block: int
    site: str
    stored: ActivationCache | None
    revision: str | None = None
    name: str = ""

    @property
    def cache(self) -> ActivationCache:
        """The activations, where they are stored."""
        if self.stored is None:
            raise UserError(f"{self.label}: no cached activations")
        return self.stored

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides its results."""
        return {
            "name": self.name,
            "sae_sha256": self.loaded.fingerprint(),
            "sae_seed": self.loaded.origin.get("seed"),
            "guided": self.loaded.is_guided,
            "hook_point": [self.model, self.block, self.site],
            "manifest_sha256": self.stored.checksum if self.stored else None,
            "revision": self.revision,
        }

    def split_name(self, wanted: str | None) -> str:
        """Return the split to measure on.

        Raises:
            UserError: no such split; none named where there is neither a test nor a validation split.
        """
        name = choose_split(wanted, self.cache.manifest["splits"], str(self.cache.folder))
        self.cache.split(name)
        return name


def choose_split(wanted: str | None, splits: Collection[str], where: str) -> str:
    """Return the split asked for, else the test or validation split.

    Raises:
        UserError: no such split, or none that is for evaluation.
    """
    if wanted is not None:
        if wanted not in splits:
            raise UserError(f"{where}: no split {wanted!r}; it has {', '.join(splits)}")
        return wanted
    name = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if name is None:
        raise UserError(f"{where} has no test or valid split; name one with --split")
    return name


def evaluated(
    args: argparse.Namespace, dataset: str, *, live: bool = False, by_concept: bool = True
) -> list[Evaluated]:
    """Load every SAE of `args.sae`, for every block of `args.block`, and open its activations of a data set.

    Args:
        args: what `add_sae_arguments` parsed.
        dataset: the data set's name.
        live: the language model will be run; no stored activations are opened.
        by_concept: whether the concepts must be those that a guided SAE was guided by.

    Raises:
        UserError: a bad reference; an SAE that does not tell its model, block or site, or tells another than asked for;
            no activations for it, or some of another model, other weights, another width or other concepts.
    """
    subjects: list[Evaluated] = []
    loaded_refs: dict[str, LoadedSAE] = {}
    for label, ref, block in _references(args):
        loaded = loaded_refs.setdefault(ref, loaded_refs.get(ref) or load_sae(ref))
        model, own_block, site = _hook_point(args, ref, loaded, block)
        cache, revision = None, None
        if live:
            revision = _check_model(ref, loaded, find_model(model, getattr(args, "model_path", None)))
        else:
            cache = ActivationCache(args.data / cache_name(model, dataset, own_block, site))
            check_fit(ref, loaded, cache)
            if by_concept:
                _check_concepts(ref, loaded, cache)
        subjects.append(Evaluated(label, loaded, model, own_block, site, cache, revision, _short_name(label, loaded)))
    return _named_apart(subjects)


def _short_name(label: str, loaded: LoadedSAE) -> str:
    """Of our own checkpoints the folder's name: the same for all seeds. Others are what they are called."""
    return Path(label).name if loaded.format == "guided" else label


def _named_apart(subjects: list[Evaluated]) -> list[Evaluated]:
    """Let SAEs of one name but of different kinds go by their whole labels.

    Raises:
        UserError: the same SAE twice.
    """
    kinds: dict[str, set[str]] = {}
    seen: dict[str, str] = {}
    for subject in subjects:
        made_of = {key: value for key, value in subject.made_of.items() if key not in ("name", "sae_seed")}
        same = seen.setdefault(json.dumps(made_of), subject.label)
        if same != subject.label:
            raise UserError(f"--sae {subject.label} and {same} are the same SAE")
        kind = [subject.loaded.sae.config.to_dict(), subject.model, subject.block, subject.site, made_of["guided"]]
        kinds.setdefault(subject.name, set()).add(json.dumps(kind))
    return [replace(one, name=one.label) if len(kinds[one.name]) > 1 else one for one in subjects]


def shared_texts(subjects: list[Evaluated]) -> dict[str, Any]:
    """Return what decides which texts the activations are of; it must be the same for all that are compared.

    Raises:
        UserError: activations of different texts.
    """
    keys = ("dataset_fingerprint", "max_texts", "seed", "max_length")
    first = {key: subjects[0].cache.manifest.get(key) for key in keys}
    for subject in subjects[1:]:
        own = {key: subject.cache.manifest.get(key) for key in keys}
        if differs := differences(first, own):
            folders = f"{subjects[0].cache.folder} and {subject.cache.folder}"
            raise UserError(f"{folders} were made from different texts ({differs}); they cannot be compared")
    return first


def model_of_cache(cache: ActivationCache, model_path: str | None) -> ModelSource:
    """Find the language model that activations come from.

    Raises:
        UserError: as `find_model`, or other weights.
    """
    source = find_model(cache.manifest["model"], model_path)
    if source.revision != cache.manifest["revision"]:
        revisions = f"{source.revision}, not {cache.manifest['revision']}"
        raise UserError(f"{source.folder}: other weights than {cache.folder} comes from ({revisions})")
    return source


def _references(args: argparse.Namespace) -> Iterator[tuple[str, str, int | None]]:
    blocks = list(dict.fromkeys(args.block or [None]))
    for ref in dict.fromkeys(_normal(ref) for ref in args.sae):
        for block in blocks:
            try:
                filled = ref.format(block=block) if block is not None else ref
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                raise UserError(f"--sae {ref}: only {{block}} or {{block:02}} may stand in braces") from None
            label = filled if filled != ref or block is None else f"{filled}@B{block:02}"
            yield label, filled, block


def _normal(ref: str) -> str:
    """Write a reference in one way."""
    name, _, location = ref.rpartition(":")
    return f"{name}:{Path(location)}" if name not in ("", "guided") else str(Path(location))


def _hook_point(args: argparse.Namespace, ref: str, loaded: LoadedSAE, block: int | None) -> tuple[str, int, str]:
    origin = loaded.origin
    wanted = {"model": args.model, "block": block, "site": args.site}
    for key, value in wanted.items():
        if value is not None and origin.get(key) not in (None, value) and loaded.format == "guided":
            raise UserError(f"{ref} was trained on {key} {origin[key]}; --{key} {value} is another")
    found: dict[str, Any] = {key: origin.get(key) if value is None else value for key, value in wanted.items()}
    if missing := [f"--{key}" for key, value in found.items() if value is None]:
        raise UserError(f"{ref}: does not tell its model, block and site; give {', '.join(missing)}")
    return str(found["model"]), int(found["block"]), str(found["site"])


def _check_model(ref: str, loaded: LoadedSAE, source: ModelSource) -> str:
    width = load_config(source).hidden_size
    if width != loaded.sae.config.n_inputs:
        raise UserError(f"{ref}: n_inputs is {loaded.sae.config.n_inputs}, but {source.folder} is {width} wide")
    revision = loaded.origin.get("revision")
    if revision is not None and source.revision != revision:
        raise UserError(f"{source.folder}: other weights than {ref} was trained on ({source.revision}, not {revision})")
    return source.revision


def check_fit(ref: str, loaded: LoadedSAE, cache: ActivationCache) -> None:
    """Raise UserError for activations of another width, or of other weights, than an SAE takes."""
    n_inputs = loaded.sae.config.n_inputs
    if cache.d_model != n_inputs:
        raise UserError(f"{ref}: n_inputs is {n_inputs}, but {cache.folder} is {cache.d_model} wide")
    revision = loaded.origin.get("revision")
    if revision is not None and cache.manifest["revision"] != revision:
        revisions = f"{cache.manifest['revision']}, not {revision}"
        raise UserError(f"{cache.folder} comes from other weights than {ref} was trained on ({revisions})")


def _check_concepts(ref: str, loaded: LoadedSAE, cache: ActivationCache) -> None:
    concepts = loaded.origin.get("concepts")
    if loaded.is_guided and concepts and list(concepts) != cache.concepts:
        others = f"{', '.join(cache.concepts)} instead of {', '.join(concepts)}"
        raise UserError(f"{cache.folder} has other concepts than {ref} was guided by ({others})")


def texts_of(cache: ActivationCache, data: Path) -> LabelledText:
    """Return the texts that activations were made from.

    Args:
        cache: the activations.
        data: the folder with `text/<DATASET>` in it.

    Raises:
        UserError: they are not there, or others are.
    """
    folder = data / "text" / cache.manifest["dataset"]
    if not folder.is_dir():
        raise UserError(f"{folder}: no texts there; make them with create_data/create_dataset.py")
    texts = load_labelled_text(folder)
    if texts.fingerprint() != cache.manifest["dataset_fingerprint"]:
        raise UserError(f"{cache.folder} was made from other texts than {folder}")
    return texts
