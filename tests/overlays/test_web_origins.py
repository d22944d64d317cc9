"""Names and networks of the page's options: as headers carry them, or refused with the remedy."""

from __future__ import annotations

import re
import socket
from http.client import HTTPConnection

import pytest

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web.auth import check_host, check_networks, check_origin
from pipeline.errors import SinkError
from pipeline.settings import SinkContext
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import ANY, LOCKED, TOKEN, fetch, page


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"embed_origins": ["https://bücher.example"]}, "write xn--bcher-kva.example, as browsers send it"),
        ({"embed_origins": ["https://例え.jp"]}, "write xn--r8jz45g.jp"),
        ({"embed_origins": ["https://a.example; script-src *"]}, "name each"),
        ({"embed_origins": ["https://*.example.com"]}, "without *"),
        ({"embed_origins": ["https://a b"]}, "name each"),
        ({"embed_origins": ["null"]}, "write SCHEME://HOST"),
        ({"allowed_hosts": ["bücher.example"]}, "write xn--bcher-kva.example"),
        ({"allowed_hosts": ["cams.example:8443"]}, "without *, port"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "name the proxy"),
        ({"trusted_proxies": ["::/0"]}, "name the proxy"),
        ({"trusted_proxies": ["*"]}, "write for instance 10.0.0.7"),
    ],
)
def test_name_or_network_that_no_header_carries_is_refused_with_the_remedy(options, remedy):
    with pytest.raises(SinkError, match=re.escape(remedy)):
        WebSink(WebSettings(uri=ANY, **options))


def test_hosts_and_networks_are_taken_in_their_usual_form():
    assert check_host("Cams_1.Example.") == "cams_1.example."
    assert check_host("[::0:1]") == "[::1]"
    assert check_origin("https://[0:0::1]:8443") == "https://[::1]:8443"
    assert check_networks(["10.0.0.7", " fd00::/8 "]) == ["10.0.0.7/32", "::ffff:10.0.0.7/128", "fd00::/8"]


def test_foreign_origin_is_refused_where_browsers_send_no_fetch_metadata(overlaid):
    """By HTTP from another machine they send Origin and Referer only."""
    with page(embed_origins=["https://dash.example"]) as sink:
        sink.put(overlaid())
        for origin, code in (("https://evil.example", 403), ("null", 403), ("https://dash.example", 200)):
            assert fetch(sink, "/stream/line.mjpg", "HEAD", Origin=origin)[0] == code


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_page_on_all_addresses_believes_a_proxy_that_connects_by_ipv4():
    with WebSink(WebSettings(uri="http://[::]:0"), SinkContext(("line",), LOCKED)) as sink:
        link = HTTPConnection("127.0.0.1", int(sink.endpoint.rpartition(":")[2]), timeout=LIMIT_SECONDS)
        link.request("POST", "/login", f"token={TOKEN}", {"X-Forwarded-Proto": "https"})
        assert "Secure" in link.getresponse().headers["set-cookie"]
        link.close()
