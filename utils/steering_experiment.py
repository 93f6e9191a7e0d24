"""What makes the steering experiments differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """What makes the experiments differ.

    Attributes:
        name: of the folder, such as `Steering_SP`.
        alphas: the sweep, where none is given.
        betas: likewise.
        tokens: whether the concepts are those of tokens (all their latents steer), or of texts.
        effect: the measure that steering is to change.
        cut: tokens that are taken from the end of a text, to be written anew.
        prefixes: sentences that invite the concept, for rivals that steer by one; the first is the default.
        grades: of the judge, where there is one, see `utils.judges.grading.GRADES`.
        styles: names of the two styles of sentences, where the likelihood of the next one is measured.
        transition_alphas: the strengths for that.
    """

    name: str
    alphas: tuple[float, ...]
    betas: tuple[str, ...]
    tokens: bool
    effect: str
    cut: int
    prefixes: tuple[str, ...]
    grades: tuple[str, ...]
    styles: tuple[str, str] | None = None
    transition_alphas: tuple[float, ...] = ()
