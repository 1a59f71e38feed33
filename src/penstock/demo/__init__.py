"""The demonstration model: makes its text, trains on it, and measures what was learned.

    tables, tools   what it should know, and the tools it should call
    text            dialogues made of those, split into training text and held-out prompts
    tokenizer       the byte-level BPE and the chat template
    network, rows, train    the decoder, its batches and the training loop
    evaluate        greedy answers of the saved model to held-out prompts

The model itself lies in `model/`; `MODEL_FOLDER` is where to load it from.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
