"""Log-probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence

from penstock.router.answer_text import LoggedToken
from penstock.router.detokenizer import Vocabulary
from penstock.router.openai.responses import ChatLogprobs, CompletionLogprobs, TokenLogprobs, TopLogprob


def chat_logprobs(vocabulary: Vocabulary, logged: Sequence[LoggedToken], num_top: int) -> ChatLogprobs:
    """Chat form: per token its text, bytes and alternatives."""
    content = []
    for entry in logged:
        raw = _bytes(vocabulary, entry.token_id)
        top = [_top(vocabulary, token_id, logprob) for token_id, logprob in entry.logprob.top[:num_top]]
        content.append(TokenLogprobs(_text(raw), entry.logprob.logprob, list(raw), top))
    return ChatLogprobs(content)


def completion_logprobs(vocabulary: Vocabulary, logged: Sequence[LoggedToken], num_top: int) -> CompletionLogprobs:
    """Completions form: parallel lists, with each token's offset in the answer's text."""
    form = CompletionLogprobs([], [], [], [])
    for entry in logged:
        form.tokens.append(_text(_bytes(vocabulary, entry.token_id)))
        form.token_logprobs.append(entry.logprob.logprob)
        form.text_offset.append(entry.start)
        top: dict[str, float] = {}
        for token_id, logprob in entry.logprob.top[:num_top]:
            top.setdefault(_text(_bytes(vocabulary, token_id)), logprob)  # tokens of equal text: the likelier
        form.top_logprobs.append(top)
    return form


def _top(vocabulary: Vocabulary, token_id: int, logprob: float) -> TopLogprob:
    raw = _bytes(vocabulary, token_id)
    return TopLogprob(_text(raw), logprob, list(raw))


def _bytes(vocabulary: Vocabulary, token_id: int) -> bytes:
    return vocabulary.piece(token_id)[0]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
