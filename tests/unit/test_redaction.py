"""Secrets stay out of what a person may show to others."""

import pytest

from actors.redaction import redacted, secrets_in

pytestmark = pytest.mark.unit

PLANTED = {
    "HF_TOKEN": "hf_Zk3vQ8wLp0sXn5TfGh7B",
    "WANDB_API_KEY": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "DATABASE_PASSWORD": "correct horse",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_of_the_environment_is_taken_out_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = f"could not open '{PLANTED[name]}' ({PLANTED[name]})"
    monkeypatch.setenv(name, PLANTED[name])
    assert redacted(text) == f"could not open '[redacted {name}]' ([redacted {name}])"


def test_a_secret_of_another_process_is_taken_out() -> None:
    assert "correct horse" not in redacted("the correct horse", [PLANTED])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://key:secret1@bucket/run", "s3://[redacted]@bucket/run"),
        ("Authorization: Bearer abc.def.ghi-jkl", "Authorization: Bearer [redacted]"),
        ("https://x/y?X-Amz-Signature=abc123&other=1", "https://x/y?[redacted]&other=1"),
        ("Authorization: Basic dXNlcjpodW50ZXIy", "Authorization: Basic [redacted]"),
        ("authorization: bearer abcdefghij", "authorization: bearer [redacted]"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9 end", "jwt [redacted] end"),
        ("openai sk-proj-abcdefghijklmnop1234 end", "openai [redacted] end"),
        ("github_pat_11ABCDEFG0123456789_abcdefghijklmnop", "[redacted]"),
        ("ghs_0123456789abcdefghij gho_0123456789abcdefghij", "[redacted] [redacted]"),
        ("xoxb-123456789012-abcdefghijkl", "[redacted]"),
        ("glpat-abcdefghijklmnopqrst", "[redacted]"),
        ("AIzaSyA0123456789abcdefghijklmnopqrstuv", "[redacted]"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[redacted]"),
        ("https://x/y?Signature=abc%2F123&Expires=1", "https://x/y?[redacted]&Expires=1"),
        ("https://x/y?sv=2024&sig=abc%3D", "https://x/y?sv=2024&[redacted]"),
        ("https://x/y?access_token=abc", "https://x/y?[redacted]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc and then it is cut", "[redacted]"),
        ("password: hunter22", "password: [redacted]"),
        ('{"api_key": "0123456789"}', '{"api_key": "[redacted]"}'),
        ("key ghp_0123456789abcdefghij here", "key [redacted] here"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\nabc\n-----END RSA PRIVATE KEY-----", "[redacted]"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, kept: str) -> None:
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 1024",
        '{"tokens_per_s": 123456.7, "learner/tokens": 8192000}',
        "tokenizer: /models/some/path",
        "learner.microbatch_tokens=16384",
        "RAY_AUTH_MODE=token",
        "basic arithmetic of Basic Arithmetic, a basic understanding",
        "the bearer of news",
        "task-of-more-than-sixteen-characters and sk-short",
        "group 3f2a:0:0:0 of prompt abcdefabcdefabcdef",
    ],
)
def test_what_a_run_says_of_itself_stays(text: str) -> None:
    assert redacted(text) == text


def test_modes_and_switches_are_no_secrets() -> None:
    assert secrets_in({"RAY_AUTH_MODE": "token", "HF_TOKEN": "", "MY_TOKEN": "1", "PATH": "/usr/bin"}) == {}
