"""Measures the demonstration model as its users meet it: through transformers, greedy, on prompts it never saw.

    python -m penstock.demo.evaluate --samples 200

An answer counts when it equals the expected one to the character and stops there. With `--write` the figures go to
`evaluation.json` and into the table of the model card, so the card cannot state what was not measured.
"""

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.demo import MODEL_FOLDER
from penstock.demo.text import SKILLS, Dialogue, make_dialogue

# Lines to look up in, beside the skill's name in the table. 79 lines are 1,000 tokens, 331 lines are 4,000.
PROBES = {
    **{skill: (skill, 0) for skill in SKILLS if skill != "retrieval"},
    "retrieval, 200 tokens": ("retrieval", 12),
    "retrieval, 1,000 tokens": ("retrieval", 79),
    "retrieval, 4,000 tokens": ("retrieval", 331),
}
REPORTED_ONLY = "retrieval, 4,000 tokens"
_TABLE = re.compile(r"(<!-- evaluation -->\n).*(<!-- end -->)", re.DOTALL)
_BATCH_TOKENS = 16_000


@dataclass(frozen=True)
class Score:
    """How many of the prompts asked were answered rightly, and how long they were on average."""

    right: int
    asked: int
    prompt_tokens: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def held_out_prompts(probe: str, num_prompts: int, seed: int = 2026) -> list[Dialogue]:
    """Distinct held-out dialogues of one turn; the same for the same arguments."""
    rng, (skill, num_lines) = Random(f"{seed} {probe}"), PROBES[probe]
    prompts: dict[str, Dialogue] = {}
    while len(prompts) < num_prompts:
        dialogue = make_dialogue(skill, rng, held_out=True, num_lines=num_lines)
        prompts.setdefault(dialogue.turns[0].question, dialogue)
    return list(prompts.values())


def messages_of(dialogue: Dialogue) -> list[dict[str, str]]:
    """The prompt as a chat completion request would carry it."""
    system = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    return [*system, {"role": "user", "content": dialogue.turns[0].question}]


class Candidate:
    """A model folder, loaded to be asked."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def prompt(self, dialogue: Dialogue) -> str:
        tools = [tool.schema() for tool in dialogue.tools] or None
        text: str = self.tokenizer.apply_chat_template(
            messages_of(dialogue), tools=tools, add_generation_prompt=True, tokenize=False
        )
        return text

    @torch.inference_mode()
    def answers(self, prompts: list[str]) -> list[str]:
        """Greedy answers of at most 96 tokens, up to and without the end of the turn."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        outputs = self.model.generate(**inputs, do_sample=False, max_new_tokens=96)
        texts = self.tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :])
        return [text.split("<|im_end|>")[0] for text in texts]

    def score(self, dialogues: list[Dialogue]) -> Score:
        """Ask all, prompts of about the same length together."""
        asked = sorted(((self.prompt(d), d.turns[0].answer) for d in dialogues), key=lambda pair: len(pair[0]))
        lengths = [len(self.tokenizer(text)["input_ids"]) for text, _ in asked]
        size = max(1, min(100, _BATCH_TOKENS // max(lengths)))
        right = 0
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            answers = self.answers([prompt for prompt, _ in batch])
            right += sum(answer == wanted for answer, (_, wanted) in zip(answers, batch, strict=True))
        return Score(right, len(asked), round(sum(lengths) / len(lengths)))


def table(scores: dict[str, Score]) -> str:
    """The scores as Markdown, the same in the terminal and in the model card."""
    lines = ["| skill | right | asked | share | mean prompt tokens |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {s.right} | {s.asked} | {s.share:.1%} | {s.prompt_tokens} |" for name, s in scores.items()]
    return "\n".join(lines) + "\n"


def read_scores(folder: Path) -> dict[str, Score]:
    """The scores that `--write` left beside the model."""
    return {name: Score(**entry) for name, entry in json.loads((folder / "evaluation.json").read_text()).items()}


def write_scores(scores: dict[str, Score], folder: Path) -> None:
    """Put the scores beside the model and into its card."""
    entries = {name: asdict(score) for name, score in scores.items()}
    (folder / "evaluation.json").write_text(json.dumps(entries, indent=2) + "\n")
    card = folder / "README.md"
    card.write_text(_TABLE.sub(lambda match: match[1] + table(scores) + match[2], card.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m penstock.demo.evaluate", description=__doc__)
    parser.add_argument(
        "--samples", type=int, default=200, help="held-out prompts per skill; a quarter at 4,000 tokens"
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="model folder to measure")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--write", action="store_true", help="write evaluation.json and the table of the model card")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    candidate = Candidate(options.model)
    counts = {probe: options.samples // (4 if probe == REPORTED_ONLY else 1) for probe in PROBES}
    scores = {probe: candidate.score(held_out_prompts(probe, count)) for probe, count in counts.items()}
    print(table(scores))
    if options.write:
        write_scores(scores, options.model)


if __name__ == "__main__":
    main()
