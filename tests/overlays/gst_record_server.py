"""A media server for tests: takes streams by RTSP's RECORD and writes their images. Run by the system's Python.

    /usr/bin/python3 gst_record_server.py FOLDER [PORT [USER PASSWORD [PEM]]]

Listens at rtsp://127.0.0.1:PORT/line, and at /second, whose images have names that begin with s; prints the port. With
a user it asks for Digest authentication; with a PEM file (certificate and key) it takes TLS only. Ends when its
standard input closes.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - gi asks for the versions first


def main() -> None:
    folder, port, user, password, pem = (*sys.argv[1:], *["0", "", "", ""][len(sys.argv) - 2 :])[:5]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for path, name in (("/line", ""), ("/second", "s")):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
        factory.set_launch(
            "( decodebin name=depay0 ! videoconvert ! jpegenc quality=95 ! "
            f"multifilesink async=false sync=false location={folder}/{name}%06d.jpg )"
        )
        if user:
            role = "publisher,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
            factory.add_role_from_structure(Gst.Structure.new_from_string(role))
        server.get_mount_points().add_factory(path, factory)
    if user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "publisher")
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
        if pem:
            auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(pem))
        server.set_auth(auth)
    loop = GLib.MainLoop()
    server.attach(None)
    print(server.get_bound_port(), flush=True)  # noqa: T201 - how its starter learns the port

    def until_closed() -> None:
        sys.stdin.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=until_closed, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
