"""Tests of HTTP authentication, against the examples of the standards."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.http_auth import Challenge, authorization, challenges, strongest

NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def answer(header, *, user="Mufasa", password="Circle of Life", cnonce=CNONCE):  # noqa: S107 - the standard's own
    return authorization(
        challenges([header])[0], user=user, password=password, method="GET", target="/dir/index.html", count=1,
        cnonce=cnonce,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_digest_gives_the_responses_of_rfc_7616(algorithm, response):
    challenge = f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, nonce="{NONCE}"'
    assert f'response="{response}"' in answer(challenge)


def test_digest_gives_the_response_of_rfc_2617():
    challenge = 'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'
    assert "6629fae49393a05397450978507c4ef1" in answer(challenge, password="Circle Of Life", cnonce="0a4f113b")  # noqa: S106


def test_basic_gives_the_response_of_rfc_7617():
    assert answer('Basic realm="x"', user="Aladdin", password="open sesame") == (  # noqa: S106
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    )


def test_challenges_are_separated_in_one_header_and_in_several():
    header = 'Basic realm="a, b", Digest realm="c", nonce="n\\"x", algorithm=SHA-256, qop="auth", Negotiate'
    parted = ['Basic realm="a, b"', 'Digest realm="c", nonce="n\\"x", algorithm=SHA-256, qop="auth"', "Negotiate"]
    assert challenges([header]) == challenges(parted)
    assert [challenge.scheme for challenge in challenges([header])] == ["basic", "digest", "negotiate"]
    assert challenges([header])[1].parameters["nonce"] == 'n"x'


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["Basic realm=x", "Digest nonce=a", "Digest nonce=a, algorithm=SHA-256"], "Digest SHA-256"),
        (["Digest nonce=a, algorithm=NEW-512", "Basic realm=x"], "Basic"),
        (["Digest nonce=a, algorithm=SHA-256-sess"], "Digest SHA-256-SESS"),
        (["Negotiate", "Digest nonce=a, algorithm=NEW-512"], None),
    ],
)
def test_strongest_known_challenge_is_chosen(offered, chosen):
    actual = strongest(challenges(offered))
    assert (actual and actual.name) == chosen


def test_integrity_alone_is_answered_for_an_empty_body():
    assert "qop=auth-int" in answer(f'Digest realm="x", qop="auth-int", nonce="{NONCE}"')


@pytest.mark.slow
@given(header=st.text(max_size=80))
def test_challenges_parses_any_header(header):
    assert all(isinstance(challenge, Challenge) for challenge in challenges([header]))


def test_quotes_in_names_are_escaped():
    challenge = answer('Digest realm="a\\"b", nonce="n"', user='me"x')
    assert re.search(r'username="me\\"x", realm="a\\"b"', challenge)
