"""Secrets stay out of what a person may show to others."""

import pytest

from deploy.cluster.redaction import redacted, secrets_in

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
        "group 3f2a:0:0:0 of prompt abcdefabcdefabcdef",
    ],
)
def test_what_a_run_says_of_itself_stays(text: str) -> None:
    assert redacted(text) == text


def test_modes_and_switches_are_no_secrets() -> None:
    assert secrets_in({"RAY_AUTH_MODE": "token", "HF_TOKEN": "", "MY_TOKEN": "1", "PATH": "/usr/bin"}) == {}
