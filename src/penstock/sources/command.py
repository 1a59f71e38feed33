"""`penstock fetch`: brings a model to where its pod will look for it, and says how far it is."""

from dataclasses import dataclass
from pathlib import Path

from penstock.config import option
from penstock.errors import PenstockError
from penstock.sources.find import find_folder
from penstock.sources.progress import say_to_stderr


@dataclass(frozen=True)
class FetchConfig:
    """What to fetch, and whom to tell."""

    uri: str
    text_only: bool = option(False, "Leave out the weights: the router reads only configs and tokenizer.")
    termination_log: str = option("", "File that gains the sentence of a failure; Kubernetes shows it in the pod.")


def run_fetch(config: FetchConfig) -> int:
    """Returns when the model is there. Raises ModelError."""
    try:
        folder = find_folder(config.uri, text_only=config.text_only)
    except PenstockError as error:
        if config.termination_log:
            Path(config.termination_log).write_text(str(error))
        raise
    say_to_stderr(f"{config.uri} is in {folder}")
    return 0
