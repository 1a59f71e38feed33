"""From a body to a Call: parsed, checked against the model, rendered, tokenized. Nothing has reached a worker yet."""

import time
from collections.abc import Sequence

from penstock.errors import RequestError
from penstock.router.answer_text import AnswerText
from penstock.router.flow.arrival import Arrival
from penstock.router.generation import Generation
from penstock.router.index.keys import opaque_salt
from penstock.router.model import ServedModel
from penstock.router.openai import chat, completions
from penstock.router.openai.call import Call, Choice, Form
from penstock.router.openai.requests import (
    ApiRequest,
    ChatRequest,
    CompletionRequest,
    decode_request,
    stop_strings,
)
from penstock.router.openai.sampling import sample_seeds, sampling_params
from penstock.router.policy import EXPECTED_OUTPUT_TOKENS
from penstock.router.services import Services


async def prepare_chat(services: Services, arrival: Arrival) -> Call:
    """Raises RequestError."""
    most = _most_answers(services)

    def read() -> tuple[ChatRequest, str]:
        request = decode_request(arrival.body, ChatRequest)
        check_model(request.model, services.model)
        _check_count(request, 1, most)
        return request, chat.render_prompt(request, services.model)

    request, text = await services.tokenizing.aside(len(arrival.body), read)
    form = chat.ChatForm(arrival.request_id, int(time.time()), services.model.vocabulary, request)
    salt = _salt(services, request, arrival)
    prompt = await services.tokenizing.conversation(text, salt, field="messages")
    return _call(
        services,
        request,
        form,
        [prompt],
        arrival,
        salt,
        max_tokens=chat.max_tokens_of(request),
        max_tokens_field=chat.max_tokens_field(request),
        logprobs=chat.logprobs_of(request),
        prompt_field="messages",
    )


async def prepare_completion(services: Services, arrival: Arrival) -> Call:
    """Raises RequestError."""
    most = _most_answers(services)

    def read() -> tuple[CompletionRequest, list[str | list[int]]]:
        request = decode_request(arrival.body, CompletionRequest)
        check_model(request.model, services.model)
        completions.check_best_of(request)
        _check_count(request, completions.num_prompts(request), most)
        return request, completions.prompts_of(request, services.model.vocab_size)

    request, sources = await services.tokenizing.aside(len(arrival.body), read)
    form = completions.CompletionForm(arrival.request_id, int(time.time()), services.model.vocabulary, request)
    encode = services.tokenizing.text
    prompts = [
        await encode(source, add_special_tokens=True, field="prompt") if isinstance(source, str) else source
        for source in sources
    ]
    return _call(
        services,
        request,
        form,
        prompts,
        arrival,
        _salt(services, request, arrival),
        max_tokens=request.max_tokens,
        max_tokens_field="max_tokens",
        logprobs=request.logprobs,
        prompt_field="prompt",
    )


def check_model(name: str, model: ServedModel) -> None:
    """Raises RequestError (404) unless `name` is served here."""
    if name != model.name:
        raise RequestError(
            f"the model {name!r} does not exist; this server serves {model.name!r}",
            field="model",
            code="model_not_found",
            status=404,
        )


def _most_answers(services: Services) -> tuple[int, int]:
    """To one prompt, and to all of a request."""
    return services.samples_per_prompt, services.config.max_samples


def _check_count(request: ApiRequest, num_prompts: int, most: tuple[int, int]) -> None:
    num_samples, (most_per_prompt, most_in_all) = request.n or 1, most
    if num_samples > most_per_prompt:
        raise RequestError(f"n={num_samples} asks for more than {most_per_prompt} answers to one prompt", field="n")
    if num_samples * num_prompts > most_in_all:
        asked = f"n={num_samples} for each of {num_prompts} prompts"
        raise RequestError(f"{asked} asks for more than {most_in_all} answers", field="prompt")


def _salt(services: Services, request: ApiRequest, arrival: Arrival) -> str:
    """What everything that is cached for this request depends on."""
    return opaque_salt(services.config.secret, arrival.tenant.salted(request.cache_salt or ""))


def _call(
    services: Services,
    request: ApiRequest,
    form: Form,
    prompts: Sequence[list[int]],
    arrival: Arrival,
    salt: str,
    *,
    max_tokens: int | None,
    max_tokens_field: str,
    logprobs: int | None,
    prompt_field: str,
) -> Call:
    model, num_samples = services.model, request.n or 1
    stops = stop_strings(request)
    stop_ids = frozenset(request.stop_token_ids or ())
    end_ids = stop_ids if request.ignore_eos else stop_ids | model.end_ids
    stream, request_id = bool(request.stream), arrival.request_id
    generations, choices, expected_tokens = [], [], 0
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError("the prompt has no tokens", field=prompt_field)
        sampling = sampling_params(
            request,
            max_tokens=max_tokens,
            default_max_tokens=services.config.default_max_tokens,
            logprobs=logprobs,
            prompt_tokens=len(prompt),
            context_tokens=services.context_tokens,
            vocab_size=model.vocab_size,
            prompt_field=prompt_field,
            max_tokens_field=max_tokens_field,
        )
        generation = Generation(
            services.placer,
            request_id=request_id if len(prompts) == 1 else f"{request_id}-{number}",
            prompt=prompt,
            sampling=sampling,
            end_ids=end_ids,
            vocab_size=model.vocab_size,
            seeds=sample_seeds(request.seed, num_samples),
            first_choice=number * num_samples,
            salt=salt,
            priority=request.priority or 0,
            deadline=arrival.deadline(stream=stream),
            arrival=arrival,
        )
        generations.append(generation)
        expected_tokens += len(prompt) + num_samples * min(sampling.max_tokens, EXPECTED_OUTPUT_TOKENS)
        for index in range(number * num_samples, (number + 1) * num_samples):
            text = AnswerText(model.vocabulary, end_ids=end_ids, stops=stops, min_tokens=sampling.min_tokens)
            choices.append(Choice(index, generation, text))
    return Call(
        generations,
        choices,
        form,
        stream,
        request.include_usage,
        prompt_field,
        max_tokens_field,
        expected_tokens,
    )
