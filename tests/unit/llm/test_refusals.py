"""The errors of the services that people use, and what each is taken for."""

import json

import pytest

from safetydpo.llm.refusals import Said, error_in, kind_of, said_in


def body(message, code=None, **more):
    """As OpenAI's API words it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **more}}


AZURE = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify"
SERDE = (
    "Failed to deserialize the JSON body into the target type: response_format: response_format.type `json_schema` is "
)
FASTAPI = {"type": "extra_forbidden", "loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}
ROUTED = {"reasons": ["violence"], "flagged_input": "no context length ...", "provider_name": "x"}
CONTEXT = "This model's maximum context length is 512 tokens. However, you requested 1100 tokens (100 in the messages)."
QUOTA = "You exceeded your current quota, please check your plan and billing details."
CASES = {
    "DeepSeek": (400, body("Content Exists Risk", "invalid_request_error"), "refusal"),
    "DashScope": (400, body("Input data may contain inappropriate content.", "data_inspection_failed"), "refusal"),
    "DashScope in words": (400, body("<400> InternalError.Algo.DataInspectionFailed: Output data may"), "refusal"),
    "OpenAI reasoning": (400, body("Invalid prompt: your prompt was flagged as", "invalid_prompt"), "refusal"),
    "OpenAI policy": (400, body("Your request was rejected", "content_policy_violation"), "refusal"),
    "OpenAI safety": (400, body("Your request was rejected as a result of our safety system."), "refusal"),
    "Azure": (400, body(AZURE, "content_filter", param="prompt", status=400), "refusal"),
    "Azure inner": (400, body("x", innererror={"code": "ResponsibleAIPolicyViolation"}), "refusal"),
    "Moonshot": (400, {"error": {"message": "rejected: considered high risk", "type": "content_filter"}}, "refusal"),
    "xAI": (403, {"code": "x", "error": "Content violates usage guidelines. Team: t, API key ID: k"}, "refusal"),
    "OpenRouter": (403, body("m requires moderation. Your input was flagged", 403, metadata=ROUTED), "refusal"),
    "OpenRouter raw": (400, body("Provider returned error", 400, metadata={"raw": json.dumps(body(AZURE))}), "refusal"),
    "Google": (400, [{"error": {"code": 400, "message": "blocked: PROHIBITED_CONTENT", "status": "X"}}], "refusal"),
    "Zhipu": (400, {"error": {"code": "1301", "message": "系统检测到输入可能包含不安全或敏感内容"}}, "refusal"),
    "Volcengine": (400, body("may contain sensitive information", "SensitiveContentDetected"), "refusal"),
    "Anthropic behind a gateway": (400, body("Output blocked by content filtering policy"), "refusal"),
    "StepFun": (451, body("blocked"), "refusal"),
    "a gateway's 500": (500, body("litellm.ContentPolicyViolationError: x"), "refusal"),
    "DeepSeek form": (422, SERDE + "unavailable now", "form"),
    "DeepSeek form in 400": (400, body("This response_format type is unavailable now"), "form"),
    "LM Studio": (400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}, "form"),
    "FastAPI": (422, {"detail": [FASTAPI]}, "form"),
    "the word JSON": (400, body("'messages' must contain the word 'json' to use 'response_format'"), "form"),
    "OpenRouter form": (404, body("No endpoints found that can handle the requested parameters.", 404), "form"),
    "a grammar": (400, body("Failed to initialize samplers: failed to parse grammar"), "form"),
    "501": (501, body("structured outputs are not implemented"), "form"),
    "OpenAI bound": (400, body("Invalid schema for response_format 'x': 'maxItems' is not permitted."), "bound"),
    "another bound": (400, body("For 'array' type, property 'minItems' is not supported in a schema"), "bound"),
    "a keyword": (400, body("schema: the keyword 'pattern' is not permitted"), "bound"),
    "llama.cpp bound": (400, body("failed to parse grammar: number of repetitions exceeds sane defaults"), "bound"),
    "OpenAI context": (400, body(CONTEXT, "context_length_exceeded"), "context"),
    "vLLM": (400, {"object": "error", "message": CONTEXT, "code": 400}, "context"),
    "vLLM's max_tokens": (400, body("'max_tokens' is too large: 1024. " + CONTEXT), "context"),
    "llama.cpp": (400, body("the request exceeds it", 400, type="exceed_context_size_error", n_ctx=256), "context"),
    "llama.cpp 500": (500, body("the request exceeds the available context size", 500), "context"),
    "llama-cpp-python": (400, body("Requested tokens (2285) exceed context window of 2048"), "context"),
    "LM Studio context": (400, {"error": "the model is loaded with context length of only 4096 tokens"}, "context"),
    "Moonshot context": (400, body("Your request exceeded model token limit : 8192"), "context"),
    "TGI": (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 2048", "error_type": "x"}, "context"),
    "Zhipu context": (400, {"error": {"code": "1261", "message": "Prompt 超长"}}, "context"),
    "413": (413, body("Request too large"), "context"),
    "Groq": (400, body("Failed to generate JSON.", "json_validate_failed", failed_generation="{bad"), "malformed"),
    "401": (401, body("Incorrect API key provided"), "key"),
    "403": (403, body("You do not have access"), "key"),
    "an account": (403, body("Your account was flagged for potential abuse"), "key"),
    "a country": (403, body("Country not supported", "unsupported_country_region_territory"), "key"),
    "402": (402, body("Add more credits"), "credit"),
    "OpenAI credit": (429, body(QUOTA, "insufficient_quota"), "credit"),
    "DeepSeek credit": (402, body("Insufficient Balance"), "credit"),
    "Anthropic credit": (400, body("Your credit balance is too low"), "credit"),
    "DashScope credit": (400, {"code": "Arrearage", "message": "Access denied, good standing"}, "credit"),
    "Zhipu credit": (429, {"error": {"code": "1113", "message": "您的账户已欠费"}}, "credit"),
    "a rate that is called a quota": (429, body(QUOTA, 429, status="RESOURCE_EXHAUSTED"), "again"),
    "429": (429, body("Rate limit reached: content flagged"), "again"),
    "503": (503, "<html><head><title>503 busy</title></head>", "again"),
    "408": (408, "", "again"),
    "404": (404, body("no such page"), "model"),
    "DeepSeek model": (400, body("Model Not Exist"), "model"),
    "SiliconFlow model": (400, {"code": 20012, "message": "Model does not exist. Please check it."}, "model"),
    "LiteLLM model": (400, body("/chat/completions: Invalid model name passed in model=m"), "model"),
    "max_tokens": (400, body("Unsupported parameter: 'max_tokens'", "unsupported_parameter"), "never"),
    "an echo of the request": (422, {"detail": [{"loc": ["seed"], "msg": "bad", "input": "response_format"}]}, "never"),
    "names": (400, body("Parameter names are case-sensitive"), "never"),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_are_taken_for_what_they_are(name):
    status, said, kind = CASES[name]
    assert kind_of(status, said_in(said if isinstance(said, str) else json.dumps(said))) == kind


WORDS = {
    '{"error": {"message": "no", "code": "c"}}': "no",
    '{"error": "no"}': "no",
    '{"message": "no", "code": 7}': "no",
    '{"detail": "no"}': "no",
    '{"detail": [{"loc": ["body", "seed"], "msg": "big"}, {"loc": ["q"], "msg": "no"}]}': "body.seed: big q: no",
    '["no", "never"]': "no never",
    '"no"': "no",
    '[{"error": {"message": "no"}}]': "no",
    '{"error": {"message": "out", "metadata": {"raw": "{\\"error\\": {\\"message\\": \\"inner\\"}}"}}}': "out inner",
    '{"error": {"message": "{not JSON"}}': "{not JSON",
    '{"error": {"code": "c"}}': "c",
    '{"a": 1}': '{"a": 1}',
    "not here": "not here",
    "<html><head><title>502 Bad\nGateway</title></head><body>x</body></html>": "502 Bad Gateway",
    "<style>a {}</style><p>It is &lt;down&gt;</p><script>1 < 2</script>": "It is <down>",
    "": "",
}


@pytest.mark.parametrize("text", WORDS)
def test_the_servers_own_words_are_found(text):
    assert said_in(text).words == WORDS[text]


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"error": ' * 100_000, "<" * 10**6, "<script" * 10**5, "sensitiv " * 10**5]
)
def test_long_nonsense_is_read_at_once(text):
    assert len(said_in(text).words) <= 10_000
    assert kind_of(400, said_in(text)) == "never"


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ({"error": {"code": 429, "message": "slow"}}, (429, "again")),
        ({"error": {"code": "x", "message": "broken"}, "choices": []}, (500, "again")),
        ({"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, (500, "refusal")),
        ({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "low"}}, (500, "credit")),
        ({"base_resp": {"status_code": 1039, "status_msg": "token limit"}}, (500, "context")),
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, (500, "refusal")),
        ({"choices": None, "base_resp": {"status_code": 0, "status_msg": ""}}, None),
        ({"choices": [{"message": {}}], "error": "x"}, None),
        ({"choices": None}, None),
        ({"note": "x"}, None),
        ("text", None),
    ],
)
def test_errors_that_come_with_status_200_are_found(completion, found):
    error = error_in(completion)
    assert (error and (error[0], kind_of(*error))) == found


def test_codes_are_kept_beside_the_words():
    assert said_in(
        '{"error": {"message": "Bad", "code": "Content_Filter", "type": "T"}, "input": {"code": "x"}}'
    ) == Said("Bad", frozenset({"content_filter", "t"}))
